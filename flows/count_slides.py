"""The count-slides flow: from a folder of slides to their tables, and a report of what became of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from upath import UPath

from flows.cluster import ClusterSettings, open_cluster, read_settings
from flows.listening import Listener, current_listener, listening
from flows.parameters import from_parameters
from flows.schedule import MOST_SLIDES, count_all
from flows.slide_table import markdown_text, slide_line
from flows.stages import STAGES, Run
from wbc import __version__
from wbc.counting.addresses import settle_addresses
from wbc.counting.annotate import Cells, is_drawn
from wbc.counting.parameters import CountParameters
from wbc.counting.remarks import Remarks, remarks_on
from wbc.counting.slide import CountSettings, Job, SlideOutcome, is_counted, unchanged
from wbc.models import registry
from wbc.models.cards import Task
from wbc.models.registry import ModelRef
from wbc.storage.layout import Layout
from wbc.storage.lock import Hold, holding
from wbc.storage.slides import survey
from wbc.taxonomy import Taxonomy, check_classes, load_taxonomy
from wbc.types import Slide

__all__ = ["CountReport", "Listener", "NothingCounted", "count_slides", "listening"]

TASK_RUNNER: Any = ThreadPoolTaskRunner(max_workers=STAGES * MOST_SLIDES)


@dataclass(frozen=True)
class CountReport:
    """What became of every slide, in the order of their ids, and what else there is to say."""

    outcomes: tuple[SlideOutcome, ...]
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def failed(self) -> tuple[SlideOutcome, ...]:
        """Those that failed, or of which something did."""
        return tuple(o for o in self.outcomes if o.reason or o.failed_fields)


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
    slides, job = UPath(parameters.slides), _job(parameters)
    drawing = None if parameters.annotate == "none" else parameters.annotate
    wanted, layout = _cluster(parameters), Layout(job.out)
    layout.check_apart(slides)
    surveyed = survey(slides)
    found = [replace(slide, um_per_px=parameters.um_per_px) for slide in surveyed.slides]
    with holding(job.out, job.run_id) as hold:
        layout.check_writable()
        layout.sweep()
        renamed = settle_addresses(found, job, rename=parameters.rename)
        outcomes = _outcomes(found, job, wanted, drawing, hold)
        hold.check()
        layout.sweep()
    report = CountReport(tuple(outcomes[slide.slide_id] for slide in found), remarks_on(surveyed, job.out, renamed))
    _publish(report, found, job)
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


def _outcomes(
    slides: Sequence[Slide], job: Job, wanted: ClusterSettings, drawing: Cells | None, hold: Hold
) -> dict[str, SlideOutcome]:
    """What becomes of every slide, by its id; those that need something are counted on a cluster."""
    listener = current_listener()
    listener.slides_found(len(slides), sum(len(slide.field_paths) for slide in slides))
    outcomes: dict[str, SlideOutcome] = {}
    waiting = []
    for slide in slides:
        standing = _standing(slide, job, drawing)
        if standing is None:
            waiting.append(slide)
        else:
            outcomes[slide.slide_id] = standing
            listener.slide_done(standing)
    get_run_logger().info("%d slides, %d counted already", len(slides), len(outcomes))

    if waiting:
        models = [model for model in (job.detector, job.classifier) if model is not None]
        with open_cluster(wanted, job.device, models) as cluster:
            run = Run(replace(job, device=cluster.device), cluster, drawing, listener)
            for outcome in count_all(waiting, run):
                outcomes[outcome.slide_id] = outcome
                listener.slide_done(outcome)
                hold.check()
    return outcomes


def _job(parameters: CountParameters) -> Job:
    """A count with its models pinned to the weights that they mean now."""
    taxonomy, classifier = load_taxonomy(parameters.taxonomy), parameters.classifier
    return Job(
        UPath(parameters.out),
        _model(parameters.detector, "detector", taxonomy),
        None if classifier is None else _model(classifier, "classifier", taxonomy),
        taxonomy,
        CountSettings(parameters.min_score),
        force=parameters.force,
        verify=parameters.verify,
        keep_pixels=parameters.keep_pixels,
        device=parameters.device,
    )


def _cluster(parameters: CountParameters) -> ClusterSettings:
    settings = read_settings(parameters.settings) if parameters.settings else ClusterSettings()
    return settings.overridden(parameters.workers, parameters.scheduler)


def _model(reference: str, kind: Task, taxonomy: Taxonomy) -> ModelRef:
    model, card = registry.resolve(reference, kind)
    check_classes(taxonomy, card.classes, reference)
    return model


def _standing(slide: Slide, job: Job, drawing: Cells | None) -> SlideOutcome | None:
    """The outcome of a slide that needs nothing; opens no field."""
    try:
        if is_counted(slide, job) and (drawing is None or is_drawn(job.out, slide, drawing)):
            return unchanged(slide, job.out)
    except (OSError, ValueError):  # tables that cannot be read are written again
        pass
    return None


def _publish(report: CountReport, slides: Sequence[Slide], job: Job) -> None:
    """The report as the flow run's table artifact, and its sum in the log."""
    failed = [o for o in report.outcomes if o.status == "failed"]
    n_bad_fields = sum(len(o.failed_fields) for o in report.outcomes)
    n_cells = sum(o.n_cells for o in report.outcomes)
    total = f"{len(report.outcomes)} slides, {n_cells} cells; {len(failed)} slides failed, {n_bad_fields} fields failed"
    lines = [slide_line(o, s, job.out, job.taxonomy) for o, s in zip(report.outcomes, slides, strict=True)]
    warnings, notes = report.remarks.warnings(), report.remarks.notes()
    told = [f"{total}. Tables in {markdown_text(str(job.out))}.", *map(markdown_text, [*warnings, *notes])]
    create_table_artifact(lines, key="count-slides", description="\n\n".join(told))
    (get_run_logger().warning if report.failed else get_run_logger().info)(total)
    for line in warnings:
        get_run_logger().warning(line)
    for line in notes:
        get_run_logger().info(line)
