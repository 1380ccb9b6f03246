"""What a count says while it runs: a bar at a terminal, a line for each slide in a log."""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from wbc.cli.tables import counted
from wbc.counting.report import printable
from wbc.sought import not_sought_words

if TYPE_CHECKING:
    from wbc.counting.handover import SlideOutcome


class LogLines:
    """Listens to a count and writes a line for each slide: what a log file keeps of it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        """The count begins."""
        self._line(f"{counted(n_slides, 'slide')} with {counted(n_fields, 'field')}")

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        """Not worth a line."""

    def slide_done(self, outcome: "SlideOutcome") -> None:
        """A slide is counted, unchanged or failed."""
        facts = f"{counted(outcome.n_fields, 'field')}, {counted(outcome.n_cells, 'cell')}, {outcome.seconds:.1f} s"
        if left := not_sought_words(outcome.cells):
            facts += f", {left} not looked for"
        if outcome.failed_fields:
            facts += f", {len(outcome.failed_fields)} failed"
        if outcome.status == "failed":
            facts = printable(outcome.reason)
        self._line(f"{printable(outcome.slide_id)}: {outcome.status}: {facts}")

    def _line(self, text: str) -> None:
        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}"), soft_wrap=True)


class ProgressBar:
    """Listens to a count and shows a bar over its slides and fields, with cells per second and the time left.

    A context manager: the bar is there from entry to exit. Its methods may be called from any thread.
    """

    def __init__(self, console: Console) -> None:
        self._lock = threading.Lock()
        self._cells, self._began = 0, time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._slides = self._bar.add_task("starting", total=None, rate="")
        self._fields = self._bar.add_task("fields", total=None, rate="", visible=False)

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        """The count begins: the clock of cells per second and of the time left starts here."""
        self._began = time.monotonic()
        self._bar.reset(self._slides, total=n_slides, description="slides")
        self._bar.reset(self._fields, total=n_fields, visible=True)

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        """Some fields are counted."""
        with self._lock:
            self._cells += n_cells
            rate = self._cells / max(1e-3, time.monotonic() - self._began)
            self._bar.update(self._fields, advance=n_fields, rate=f"{rate:,.0f} cells/s")

    def slide_done(self, outcome: "SlideOutcome") -> None:
        """A slide is done; fields that need no counting, or cannot be counted, are done with it."""
        silent = outcome.n_fields if outcome.status == "unchanged" else len(outcome.failed_fields)
        self._bar.update(self._fields, advance=silent)
        self._bar.update(self._slides, advance=1)
