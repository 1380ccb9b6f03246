"""Many slides side by side: how many are under way at once, and what became of each."""

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from prefect import get_run_logger
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import quote

from flows.cluster import Cluster, reason
from flows.stages import Run, Way, annotate, count
from wbc.counting.slide import SlideOutcome, chunks, record_failure
from wbc.storage.atomic import remove_folder
from wbc.types import Slide

T = TypeVar("T")

# Two slides at least are under way, so that one is computed while the other is committed; beyond that, enough to keep
# some chunks ready for each thread of the cluster. More would only fill the disk with pixels.
FEWEST_SLIDES, MOST_SLIDES, CHUNKS_A_THREAD = 2, 32, 3


@dataclass(frozen=True, slots=True)
class Work:
    """A slide under way: the futures of its tasks, in their order."""

    slide: Slide
    tasks: tuple[PrefectFuture[Any], ...]
    n_chunks: int
    began: float


def count_all(slides: Iterable[Slide], run: Run) -> Iterator[SlideOutcome]:
    """The outcome of each slide when it is done; enough slides are under way to keep the cluster busy."""
    finished: SimpleQueue[str] = SimpleQueue()
    waiting, under_way = deque(slides), dict[str, Work]()
    while waiting or under_way:
        while waiting and _has_room(under_way.values(), run.cluster):
            work = _start(waiting.popleft(), run)
            under_way[work.slide.slide_id] = work
            work.tasks[-1].add_done_callback(partial(_tell, finished, work.slide.slide_id))
        work = under_way.pop(finished.get())
        yield _outcome(work, run)
        _forget(work)


def _forget(work: Work) -> None:
    """Let Prefect's flow run drop what it keeps of each task to its end: ten thousand slides' would be a lot.

    States by result are for results that become arguments, of which there are none; events cancel what has not ended;
    assets are handed down to what follows from a task.
    """
    context = FlowRunContext.get()
    if context is not None:
        context.run_results.clear()
        cancel_events = getattr(context.task_runner, "_cancel_events", {})
        for task in work.tasks:
            cancel_events.pop(task.task_run_id, None)
            context.task_run_assets.pop(task.task_run_id, None)


def _tell(finished: SimpleQueue[str], slide_id: str, _future: PrefectFuture[Any]) -> None:
    finished.put(slide_id)


def _has_room(under_way: Collection[Work], cluster: Cluster) -> bool:
    n_chunks = sum(work.n_chunks for work in under_way)
    return len(under_way) < FEWEST_SLIDES or (
        len(under_way) < MOST_SLIDES and n_chunks < CHUNKS_A_THREAD * cluster.threads
    )


def _start(slide: Slide, run: Run) -> Work:
    way = Way(slide)
    tasks: tuple[PrefectFuture[Any], ...] = (count.submit(_whole(way), _whole(run)),)
    if run.drawing is not None:
        tasks += (annotate.submit(_whole(way), _whole(run), return_state=False, wait_for=[*tasks]),)
    return Work(slide, tasks, max(1, len(chunks(slide, run.job.work.chunk_fields))), time.monotonic())


def _whole(value: T) -> T:
    """`value` as a task's argument, which Prefect then does not search for futures, field by field."""
    return cast(T, quote(value))


def _outcome(work: Work, run: Run) -> SlideOutcome:
    """What became of a slide whose tasks are done."""
    outcome, error = _result(work.tasks)
    if outcome is not None and error is None:
        return outcome
    why = "unknown" if error is None else reason(error)
    get_run_logger().error("%r: %s", work.slide.slide_id, why)
    if outcome is None:
        return _failure(work, why, run)
    return replace(outcome, reason=f"not annotated: {why}")


def _result(tasks: Iterable[PrefectFuture[Any]]) -> tuple[SlideOutcome | None, Exception | None]:
    """The outcome that the tasks came to, and the error of the first that failed."""
    outcome = None
    for task in tasks:
        try:
            result = task.result()
        except Exception as error:  # whatever it is, it is this slide's alone
            return outcome, error
        outcome = result if isinstance(result, SlideOutcome) else outcome
    return outcome, None


def _failure(work: Work, why: str, run: Run) -> SlideOutcome:
    """Commit that a slide could not be counted, and drop its pixels."""
    slide, job = work.slide, run.job
    if not job.keep_pixels:
        with suppress(OSError):
            remove_folder(job.pixels_group(slide.slide_id))
    try:
        record_failure(slide, job, why)
    except OSError as error:  # on a full disk, say: then the report alone tells
        get_run_logger().error("%r: %s", slide.slide_id, reason(error))
    seconds = time.monotonic() - work.began
    return SlideOutcome(slide.slide_id, "failed", len(slide.field_paths), 0, (), seconds, why)
