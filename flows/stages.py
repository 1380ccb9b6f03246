"""A slide's way through the stages of a count, each a Prefect task, and many slides' ways side by side."""

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import opaque, quote
from upath import UPath

from flows.cluster import Cluster, reason, worth_retrying
from flows.listening import Listener
from wbc.counting.annotate import annotate_slide, annotated_path
from wbc.counting.slide import Ingested, Job, SlideOutcome, chunks, count_ingested, ingest_slide, record_failure
from wbc.storage import tables
from wbc.storage.pixels import remove_group
from wbc.storage.tables import FailedField, arrow_text
from wbc.types import Slide

T = TypeVar("T")

STAGES = 3
# At least two slides are under way, that one is computed while the other is committed; then as many as it takes to
# have some chunks ready for each thread of the cluster. More would only fill the disk with pixels.
FEWEST_SLIDES, MOST_SLIDES, CHUNKS_A_THREAD = 2, 32, 3
RETRY_SECONDS = [2.0, 15.0]


@dataclass(frozen=True, slots=True)
class Run:
    """What the stages of a flow run share. A stage that is tried again holds `alone`."""

    job: Job
    cluster: Cluster
    annotate: bool
    listener: Listener
    alone: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Work:
    """A slide under way: the futures of its stages, in their order."""

    slide: Slide
    stages: tuple[PrefectFuture[Any], ...]
    n_chunks: int
    began: float


def _can_be_retried(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    return worth_retrying(state.data)


def _in_turn(run: Run) -> AbstractContextManager[Any]:
    """Stages that are tried again go one by one: one that kills its worker then takes no other down with it."""
    return run.alone if runtime.task_run.run_count > 1 else nullcontext()


_stage = task(
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_can_be_retried,
    task_run_name="{slide.slide_id}",
    cache_policy=NO_CACHE,
    persist_result=False,
)


@_stage
def ingest(slide: Slide, run: Run) -> Ingested:
    """Read a slide's fields into its Zarr group."""
    with _in_turn(run):
        return ingest_slide(slide, run.job, run.cluster.reading)


@_stage
def count_cells(slide: Slide, ingested: Ingested, run: Run) -> SlideOutcome:
    """Detect, name and count a slide's cells; commit its tables."""
    with _in_turn(run):
        return count_ingested(ingested, run.job, run.cluster.inference, run.listener.fields_done)


@_stage
def annotate(slide: Slide, run: Run) -> None:
    """Draw what was counted into the slide's fields. A field that is gone meanwhile is no reason to try again."""
    with _in_turn(run):
        annotate_slide(run.job.out, slide, run.cluster.reading)


def count_all(slides: Iterable[Slide], run: Run) -> Iterator[SlideOutcome]:
    """The outcomes of the slides as each is done; so many are under way that the cluster is never idle."""
    finished: SimpleQueue[str] = SimpleQueue()
    waiting, under_way = deque(slides), dict[str, Work]()
    while waiting or under_way:
        while waiting and _has_room(under_way.values(), run.cluster):
            work = _start(waiting.popleft(), run)
            under_way[work.slide.slide_id] = work
            work.stages[-1].add_done_callback(partial(_tell, finished, work.slide.slide_id))
        yield _outcome(under_way.pop(finished.get()), run)


def _tell(finished: SimpleQueue[str], slide_id: str, _future: PrefectFuture[Any]) -> None:
    finished.put(slide_id)


def _has_room(under_way: Collection[Work], cluster: Cluster) -> bool:
    n_chunks = sum(work.n_chunks for work in under_way)
    return len(under_way) < FEWEST_SLIDES or (
        len(under_way) < MOST_SLIDES and n_chunks < CHUNKS_A_THREAD * cluster.threads
    )


def _start(slide: Slide, run: Run) -> Work:
    ingested = ingest.submit(_whole(slide), _whole(run))
    counted = count_cells.submit(_whole(slide), cast(Ingested, opaque(ingested)), _whole(run))
    stages: tuple[PrefectFuture[Any], ...] = (ingested, counted)
    if run.annotate:
        stages += (annotate.submit(_whole(slide), _whole(run), return_state=False, wait_for=[counted]),)
    return Work(slide, stages, max(1, len(chunks(slide, run.job.settings.chunk_fields))), time.monotonic())


def _whole(value: T) -> T:
    """`value` as a stage's argument, which Prefect then does not search for futures, field by field."""
    return cast(T, quote(value))


def _outcome(work: Work, run: Run) -> SlideOutcome:
    """What became of a slide whose stages are done."""
    slide, counted, error = work.slide, None, None
    for stage in work.stages:
        try:
            result = stage.result()
        except Exception as raised:  # whatever it was, it is this slide's alone
            error = raised
            break
        counted = result if isinstance(result, SlideOutcome) else counted
    if counted is not None and error is None:
        return counted
    why = "unknown" if error is None else reason(error)
    get_run_logger().error("%r: %s", slide.slide_id, why)
    if counted is not None:
        not_drawn = FailedField("", f"not annotated: {why}")
        return replace(counted, failed_fields=(*counted.failed_fields, not_drawn))
    if not run.job.keep_pixels:
        with suppress(OSError):
            remove_group(run.job.pixels(slide.slide_id))
    try:
        record_failure(slide, run.job, why)
    except OSError as unwritten:  # on a full disk, say: then the report alone tells
        get_run_logger().error("%r: %s", slide.slide_id, reason(unwritten))
    seconds = time.monotonic() - work.began
    return SlideOutcome(slide.slide_id, "failed", len(slide.field_paths), 0, (), seconds, why)


def is_drawn(slide: Slide, out: UPath) -> bool:
    """Whether every field of a counted slide that could be counted was drawn since."""
    row = tables.read_slide_row(out, slide.slide_id)
    failed = {f.field for f in row.failed_fields}
    names = [arrow_text(path.name) for path in slide.field_paths]
    drawings = [annotated_path(out, slide.slide_id, name) for name in names if name not in failed]
    return all(d.exists() and d.stat().st_mtime >= row.counted_at.timestamp() for d in drawings)
