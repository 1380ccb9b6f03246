"""Processes that a terminal's Ctrl-C does not reach: the flow, which it does reach, ends them in good order."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def out_of_reach() -> Iterator[None]:
    """Within, a Ctrl-C waits, and processes that start never hear it: they inherit the signal mask of the thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
