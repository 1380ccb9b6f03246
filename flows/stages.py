"""The stages of one slide's way through a count, each a Prefect task."""

import threading
from contextlib import AbstractContextManager, nullcontext
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

STAGES = 3
RETRY_SECONDS = [2.0, 15.0]


@dataclass(frozen=True, slots=True)
class Run:
    """What the stages of a flow run share; `drawing` is which cells are drawn. A stage tried again holds `alone`."""

    job: Job
    cluster: Cluster
    drawing: Cells | None
    listener: Listener
    alone: threading.Lock = field(default_factory=threading.Lock)


def _can_be_retried(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    return worth_retrying(state.data)


def _in_turn(run: Run) -> AbstractContextManager[Any]:
    """Second tries go one by one, so that a stage which kills its worker takes no other stage down with it."""
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
    """Draw what was counted into the slide's fields. A field that has gone meanwhile is no reason to try again."""
    with _in_turn(run):
        annotate_slide(run.job.out, slide, run.cluster.reading, run.drawing or "white")
