"""What a training says at a terminal: a bar with its step, its loss and the time left."""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from wbc.training.progress import Curves

RECENT = 20  # steps


class TrainingBar:
    """Watches a training; a context manager: the bar is there from entry to exit."""

    def __init__(self, console: Console | None = None) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._steps = self._bar.add_task("reading data", total=None, loss="")

    def __enter__(self) -> "TrainingBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begins(self, name: str, step: int, steps: int) -> None:
        """The clock of the time left starts here."""
        self._bar.reset(self._steps, total=steps, completed=step, description=name)

    def step_done(self, step: int, losses: Mapping[str, float]) -> None:
        """One more step; the loss is the mean of the last ones."""
        self._recent.append(sum(losses.values()))
        self._bar.update(self._steps, completed=step, loss=f"loss {sum(self._recent) / len(self._recent):.3f}")

    def checkpointed(self, step: int, curves: "Curves") -> None:
        """Not worth a line."""
