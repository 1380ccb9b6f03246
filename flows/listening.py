"""How a program watches the counts that flow runs in its own process make."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from wbc.counting.handover import SlideOutcome


class Listener(Protocol):
    """Watches a count; called from several threads."""

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        """The count begins."""

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        """So many more fields are counted, with so many cells."""

    def slide_done(self, outcome: SlideOutcome) -> None:
        """A slide is counted, unchanged or failed."""


class _Nobody:
    def slides_found(self, n_slides: int, n_fields: int) -> None:
        pass

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        pass

    def slide_done(self, outcome: SlideOutcome) -> None:
        pass


_NOBODY = _Nobody()
_listener: ContextVar[Listener] = ContextVar("listener", default=_NOBODY)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """In this block, flow runs of this process tell `listener` how they get on."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def current_listener() -> Listener:
    """The innermost listener of this context; without any, one that does nothing."""
    return _listener.get()
