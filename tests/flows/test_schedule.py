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
def count_one() -> tuple[list[int], list[int]]:
    context: Any = FlowRunContext.get()
    future = find_cells.submit()
    future.result()
    kept = context.task_runner._cancel_events, context.task_run_assets, context.run_results
    before = [len(by_task) for by_task in kept]
    _forget(Work(Slide("s1", (), None), (future,), 1, 0.0))
    return before, [len(by_task) for by_task in kept]


def test_prefect_keeps_nothing_of_a_slide_that_is_done(prefect_server: str) -> None:
    before, after = count_one()
    assert before[:2] == [1, 1], "Prefect keeps an event and the assets of each task to the flow run's end"
    assert after == [0, 0, 0]
