"""What a flow run keeps of the slides that are done."""

from typing import Any

from prefect import flow, task
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from flows.schedule import Work, _forget
from wbc.types import Slide


@task
def find_cells() -> list[str]:
    return ["rbc"]


@flow(task_runner=ThreadPoolTaskRunner(max_workers=1))  # type: ignore[arg-type]
def count_one() -> tuple[int, int, int]:
    context: Any = FlowRunContext.get()
    stage = find_cells.submit()
    stage.result()
    kept = len(context.task_runner._cancel_events)
    _forget(Work(Slide("s1", (), None), (stage,), 1, 0.0))
    return kept, len(context.task_runner._cancel_events), len(context.run_results)


def test_prefect_keeps_nothing_of_a_slide_that_is_done(prefect_server: str) -> None:
    assert count_one() == (1, 0, 0), "Prefect keeps an event of each task to the flow run's end"
