"""A training followed in MLflow: its loss and figures are seen on MLflow's page while it goes on."""

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from wbc.models import tracking
from wbc.models.cards import ModelError
from wbc.training.progress import Curves

log = logging.getLogger(__name__)


class LiveRun:
    """Watches a training and sends its curves to a run of MLflow's, from a thread of its own: training never waits.

    Where MLflow does not answer, that is said once, and all that it lacks is sent when it does.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._last: Future[None] | None = None
        self._sent, self._is_away = 0, False
        self._figures: set[tuple[str, int]] = set()

    def begins(self, name: str, step: int, steps: int) -> None:
        """Steps that are behind it are in its curves, and sent with the first checkpoint."""

    def step_done(self, step: int, losses: Mapping[str, float]) -> None:
        """Sent with the next checkpoint."""

    def checkpointed(self, step: int, curves: Curves) -> None:
        """Send what is new, unless the thread still waits for an answer."""
        if self._last is None or self._last.done():
            rows = self._new_rows(step, curves)
            self._last = self._thread.submit(self._send, rows, step)

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown(wait=True)

    def _new_rows(self, step: int, curves: Curves) -> list[tuple[int, dict[str, float]]]:
        losses = {name: values[self._sent : step] for name, values in curves.losses.items()}
        steps = range(self._sent + 1, step + 1)
        rows = [(s, {name: values[i] for name, values in losses.items()}) for i, s in enumerate(steps)]
        rows = [(s, {**terms, "loss": sum(terms.values())}) for s, terms in rows]
        figures = [(s, name, v) for name, pairs in curves.figures.items() for s, v in pairs]
        return rows + [(s, {name: v}) for s, name, v in figures if (name, s) not in self._figures]

    def _send(self, rows: list[tuple[int, dict[str, float]]], step: int) -> None:
        try:
            tracking.log_curves(self.run_id, rows)
        except ModelError as error:
            if not self._is_away:
                log.warning("curves are not in MLflow yet, training goes on: %s", error)
            self._is_away = True
            return
        if self._is_away:
            log.warning("MLflow answers again: its curves are complete up to step %d", step)
        self._sent, self._is_away = step, False
        self._figures |= {(name, at) for at, figures in rows for name in figures}


def complete(run_id: str, curves: Curves) -> None:
    """Send what a run of MLflow's lacks of a training's curves, as where MLflow was away when the training ended.

    Raises ModelError where it does not answer.
    """
    losses = {**curves.losses, "loss": curves.total_loss}
    points = {name: list(enumerate(values, 1)) for name, values in losses.items()} | curves.figures
    kept = {name: tracking.kept_steps(run_id, name) for name in points}
    lacking = [(s, {name: v}) for name, pairs in points.items() for s, v in pairs if s not in kept[name]]
    tracking.log_curves(run_id, lacking)


@contextmanager
def followed(run_id: str) -> Iterator[LiveRun]:
    """A watcher that sends to a run; what is under way is sent by the end of the block."""
    live = LiveRun(run_id)
    try:
        yield live
    finally:
        live.close()
