"""How a training gets on: its curves, and who watches it."""

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from wbc.storage.atomic import write_whole

CURVES = "curves.csv"


@dataclass(slots=True)
class Curves:
    """What a training has shown so far: the terms of its loss at every step, and figures measured now and then.

    `losses` has a value for each step from the first; `figures` pairs of a number of steps and a value.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    figures: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add_losses(self, terms: Mapping[str, float]) -> None:
        """The next step's terms."""
        for name, value in terms.items():
            self.losses.setdefault(name, []).append(value)

    def add_figures(self, step: int, figures: Mapping[str, float]) -> None:
        """What was measured after `step` steps."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append((step, value))

    @property
    def total_loss(self) -> list[float]:
        """The loss of each step."""
        return [sum(terms) for terms in zip(*self.losses.values(), strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {"losses": self.losses, "figures": self.figures}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Back to what a checkpoint holds."""
        self.losses = {name: list(values) for name, values in state["losses"].items()}
        self.figures = {name: [(s, v) for s, v in pairs] for name, pairs in state["figures"].items()}

    def write(self, folder: Path) -> None:
        """As `curves.csv` in a folder: a line for each value. Raises OSError, naming the file."""
        rows = [("loss", name, i, v) for name, values in self.losses.items() for i, v in enumerate(values, 1)]
        rows += [("figure", name, step, v) for name, pairs in self.figures.items() for step, v in pairs]
        sink = io.StringIO(newline="")
        csv.writer(sink, lineterminator="\n").writerows([("what", "curve", "step", "value"), *rows])
        write_whole(UPath(folder / CURVES), sink.getvalue().encode())


def read_curves(folder: Path) -> Curves:
    """The curves that `Curves.write` left in a folder. Raises OSError where there are none."""
    curves = Curves()
    with (folder / CURVES).open(newline="") as file:
        for row in csv.DictReader(file):
            if row["what"] == "loss":
                curves.losses.setdefault(row["curve"], []).append(float(row["value"]))
            else:
                curves.add_figures(int(row["step"]), {row["curve"]: float(row["value"])})
    return curves


class Watcher(Protocol):
    """Watches a training, from the process and the thread that train."""

    def begins(self, name: str, step: int, steps: int) -> None:
        """The training `name` begins or goes on, with `step` of its `steps` behind it."""

    def step_done(self, step: int, losses: Mapping[str, float]) -> None:
        """So many steps are behind it; `losses` are the last one's terms."""

    def checkpointed(self, step: int, curves: Curves) -> None:
        """A checkpoint holds all up to `step`; the last one is the end of training, or of its time."""


_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextmanager
def watching(*watchers: Watcher) -> Iterator[None]:
    """In this block, trainings of this process tell `watchers` how they get on, beside those that they tell already."""
    token = _watchers.set((*_watchers.get(), *watchers))
    try:
        yield
    finally:
        _watchers.reset(token)


def current_watchers() -> tuple[Watcher, ...]:
    """All watchers of this context."""
    return _watchers.get()
