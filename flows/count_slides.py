"""The count-slides flow: from a folder of slides to their tables, and a report of what became of each."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.cluster import ClusterSettings, open_cluster, settings_of
from flows.listening import Listener, current_listener, listening
from flows.parameters import from_parameters
from flows.schedule import MOST_SLIDES, count_all
from flows.slide_table import markdown_text, most_telling, slide_line
from flows.stages import TASKS_A_SLIDE, Run
from wbc import __version__
from wbc.counting.addresses import settle_addresses
from wbc.counting.handover import SlideOutcome
from wbc.counting.parameters import CountParameters
from wbc.counting.recount import recounted
from wbc.counting.remarks import CountReport, remarks_on
from wbc.counting.standing import Request, request_of, standing_outcome, writing
from wbc.storage.lock import Hold

__all__ = ["CountReport", "Listener", "NothingCounted", "count_slides", "listening"]

TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=TASKS_A_SLIDE * MOST_SLIDES)


class NothingCounted(RuntimeError):
    """Every slide of a deployment's run failed."""


@flow(name="count-slides", version=__version__, task_runner=TASK_RUNNER, persist_result=False)
@from_parameters
def count_slides(parameters: CountParameters) -> CountReport:
    """Count the white blood cells of every slide below a folder.

    A slide that fails, or a field of it, never costs the others: it is in the report with its reason. Raises
    ValueError or OSError where the run as a whole cannot be: no such folder, model, taxonomy, cluster; OUT not
    writable, among the slides, or written by another run; no picture; a slide that OUT knows by another address, unless
    it is to `rename` it. Raises NothingCounted where every slide of a deployment's
    run failed.
    """
    wanted, request = settings_of(parameters), request_of(parameters)
    with writing(request.job) as hold:
        renamed = settle_addresses(request.slides, request.job, rename=parameters.rename)
        outcomes = _outcomes(request, wanted, hold)
    remarks = remarks_on(request.survey, request.job.out, renamed)
    report = CountReport(tuple(outcomes[slide.slide_id] for slide in request.slides), remarks)
    _publish(report, request)
    return _ending(report)


def _ending(report: CountReport) -> CountReport:
    """What the flow returns: the report, under a state of its own name where slides failed.

    Prefect takes a state for the run's, and hands on the report in it.
    """
    failed = [outcome for outcome in report.outcomes if outcome.status == "failed"]
    if not failed:
        return report
    message = f"{len(failed)} of {len(report.outcomes)} slides failed; the first: {failed[0].reason}"
    # Nobody reads what a scheduled run returns: one that achieved nothing must not look like one that did.
    if len(failed) == len(report.outcomes) and runtime.deployment.id:
        raise NothingCounted(message)
    return cast(CountReport, Completed(name="CompletedWithFailures", message=message, data=report))


def _outcomes(request: Request, wanted: ClusterSettings, hold: Hold) -> dict[str, SlideOutcome]:
    """What becomes of every slide, by its id; those that need something are counted on a cluster."""
    listener, slides, job = current_listener(), request.slides, request.job
    listener.slides_found(len(slides), sum(len(slide.field_paths) for slide in slides))
    outcomes: dict[str, SlideOutcome] = {}
    waiting = []
    for slide in slides:
        outcome = standing_outcome(slide, request)
        if outcome is None and request.drawing is None:  # what is to be drawn needs the stages anyway
            outcome = recounted(slide, job)
        if outcome is None:
            waiting.append(slide)
            continue
        outcomes[slide.slide_id] = outcome
        if outcome.status == "counted":
            listener.fields_done(outcome.n_fields - len(outcome.failed_fields), outcome.n_cells)
            hold.check()
        listener.slide_done(outcome)
    get_run_logger().info("%d slides, %d counted already or from their detections", len(slides), len(outcomes))

    if waiting:
        with open_cluster(wanted, job.device, request.models, job.engine) as cluster, _light_collector():
            n_fields = sum(len(slide.field_paths) for slide in waiting)
            work = job.work.for_run(n_fields, cluster.threads, cluster.gpus)
            run = Run(replace(job, device=cluster.device, work=work), cluster, request.drawing, listener)
            for outcome in count_all(waiting, run):
                outcomes[outcome.slide_id] = outcome
                listener.slide_done(outcome)
                hold.check()
    return outcomes


@contextmanager
def _light_collector() -> Iterator[None]:
    """Within, Python's collector leaves out what is there already: libraries, which stay, are most of it."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _publish(report: CountReport, request: Request) -> None:
    """The report as the flow run's table artifact, and its sum in the log."""
    failed = [o for o in report.outcomes if o.status == "failed"]
    n_bad_fields = sum(len(o.failed_fields) for o in report.outcomes)
    n_cells = sum(o.n_cells for o in report.outcomes)
    total = f"{len(report.outcomes)} slides, {n_cells} cells; {len(failed)} slides failed, {n_bad_fields} fields failed"
    job = request.job
    shown = most_telling(report.outcomes)
    lines = [slide_line(o, request.slides[i], job.out, job.taxonomy) for i, o in shown]
    warnings, notes = report.remarks.warnings(), report.remarks.notes()
    told = [f"{total}. Tables in {markdown_text(str(job.out))}.", *map(markdown_text, [*warnings, *notes])]
    if len(lines) < len(report.outcomes):
        told.append(f"{len(lines)} slides are shown, those first of which something failed; all are in the tables.")
    create_table_artifact(lines, key="count-slides", description="\n\n".join(told))
    (get_run_logger().warning if report.failed else get_run_logger().info)(total)
    for line in warnings:
        get_run_logger().warning(line)
    for line in notes:
        get_run_logger().info(line)
