"""One slide's way through a count: a Prefect task reads and counts it, another draws it where that is asked for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from flows.cluster import Cluster, worth_retrying
from flows.listening import Listener
from wbc.counting.annotate import Cells, annotate_slide
from wbc.counting.slide import Ingested, Job, SlideOutcome, count_ingested, ingest_slide
from wbc.types import Slide

TASKS_A_SLIDE = 2
RETRY_SECONDS = [2.0, 15.0]  # before each further try of a stage


@dataclass(frozen=True, slots=True)
class Run:
    """What the tasks of a flow run share; `drawing` is which cells are drawn. A stage tried again holds `alone`."""

    job: Job
    cluster: Cluster
    drawing: Cells | None
    listener: Listener
    alone: threading.Lock = field(default_factory=threading.Lock)


@dataclass(slots=True)
class Way:
    """A slide under way, from try to try: what reading it came to, and how often the stage it is at has failed."""

    slide: Slide
    ingested: Ingested | None = None
    failures: int = 0


def _can_be_retried(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    way: Way = runtime.task_run.parameters["way"]
    return way.failures <= len(RETRY_SECONDS) and worth_retrying(state.data)


@contextmanager
def _stage(way: Way, run: Run) -> Iterator[None]:
    """In this block, a stage of the way. Second tries go one by one: one that kills its worker takes no other down."""
    with run.alone if way.failures else nullcontext():
        try:
            yield
        except Exception:
            way.failures += 1
            raise
    way.failures = 0


# As often as if each of a task's two stages were tried again alone.
_task = task(
    retries=2 * len(RETRY_SECONDS),
    retry_delay_seconds=2 * RETRY_SECONDS,
    retry_condition_fn=_can_be_retried,
    task_run_name="{way.slide.slide_id}",
    cache_policy=NO_CACHE,
    persist_result=False,
)


@_task
def count(way: Way, run: Run) -> SlideOutcome:
    """Read a slide's fields into its Zarr group; detect, name and count its cells, and commit its tables.

    A further try goes on with the stage that failed.
    """
    if way.ingested is None:
        with _stage(way, run):
            way.ingested = ingest_slide(way.slide, run.job, run.cluster.reading)
    with _stage(way, run):
        return count_ingested(way.ingested, run.job, run.cluster.inference, run.listener.fields_done)


@_task
def annotate(way: Way, run: Run) -> None:
    """Draw what was counted into the slide's fields. A field that has gone meanwhile is no reason to try again."""
    with _stage(way, run):
        annotate_slide(run.job.out, way.slide, run.cluster.reading, run.drawing or "white")
