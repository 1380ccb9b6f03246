"""What a count says, to people and to scripts: its progress, a slide's differential as a table, the same as JSON."""

import math
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from upath import UPath

from wbc.storage.tables import FailedField, SlideRow, read_slide_row, read_table, table_path
from wbc.taxonomy import load_taxonomy, shipped_taxonomies
from wbc.types import DifferentialRow

if TYPE_CHECKING:
    from wbc.counting.slide import SlideOutcome


@dataclass(frozen=True, slots=True)
class SlideReport:
    """A slide's committed count: its row in `slides` and its rows in `differentials`, in the taxonomy's order."""

    row: SlideRow
    kinds: tuple[DifferentialRow, ...]


def counted_slides(out: UPath) -> list[str]:
    """The ids of the slides with a committed count in OUT, sorted; none where there is no such folder."""
    folder = out / "slides"
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(p.name.removesuffix(".parquet") for p in paths if p.suffix == ".parquet" and p.name[0] not in "._")


def read_report(out: UPath, slide_id: str) -> SlideReport:
    """A slide's count from its tables. Raises FileNotFoundError where there is none, ValueError where it is broken."""
    row, kinds = read_slide_row(out, slide_id), read_table(out, "differentials", slide_id)
    try:
        return SlideReport(row, tuple(DifferentialRow(**kind) for kind in kinds.drop_columns("slide_id").to_pylist()))
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{str(table_path(out, 'differentials', slide_id))!r} holds no differential: {error}"
        ) from error


def report_json(report: SlideReport) -> dict[str, Any]:
    """JSON's types: the columns of `slides`, and `differential`, a list of those of `differentials`, all kinds.

    An infinite `me_high` is null, as JSON has no infinity: `me_low` is then a number.
    """
    values = asdict(report.row) | {"counted_at": report.row.counted_at.isoformat()}
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return finite | {"differential": [asdict(kind) for kind in report.kinds]}


def outcome_json(outcome: "SlideOutcome", report: SlideReport | None) -> dict[str, Any]:
    """What became of a slide, with its count where there is one: `status` and `reason` beside `report_json`'s keys."""
    became = {"slide_id": outcome.slide_id, "status": outcome.status, "reason": outcome.reason}
    return became | (report_json(report) if report else {})


def report_table(report: SlideReport) -> RenderableType:
    """A slide's differential for a terminal: kinds with counts, percentages and 95 % limits; flags; failed fields.

    Finer kinds stand below their parent, and are left out where none was seen; so is everything that none was seen of
    and that has no percentage. What is not in the differential stands beside it, below the line.
    """
    row, depths = report.row, _depths(report)
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("kind", min_width=26)
    for heading in ("count", "%", "95 % limits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind in report.kinds:
        if kind.percent is not None and (kind.count or depths.get(kind.cell_type) == 0):
            limits = f"{kind.ci_low:.1f} – {kind.ci_high:.1f}"
            name = "  " * depths.get(kind.cell_type, 0) + _words(kind.cell_type)
            table.add_row(name, f"{kind.count:,}", f"{kind.percent:.1f}", limits)
    table.add_section()
    for kind in report.kinds:
        if kind.percent is None and kind.count:
            table.add_row(_words(kind.cell_type), f"{kind.count:,}", "", "beside", style="dim")
    lines: list[RenderableType] = [table, *(Text(f"{name:<10}{value}") for name, value in _facts(row))]
    if row.flags:
        lines.append(Text(f"{'flags':<10}{', '.join(row.flags)}", style="yellow"))
    lines += [Text(f"{'failed':<10}{failed_line(f)}", style="red") for f in row.failed_fields]
    return Group(_headline(row), Padding(Group(*lines), (0, 0, 1, 2), expand=False))


def _headline(row: SlideRow) -> Text:
    read = f"{row.n_fields - row.n_fields_failed} of {_number(row.n_fields, 'field')}"
    facts = f"  {read} · {_number(row.n_differential, 'cell')} in the differential · {row.taxonomy}"
    return Text.assemble((printable(row.slide_id), "bold"), facts)


def _facts(row: SlideRow) -> Iterable[tuple[str, str]]:
    if row.nrbc_per_100_wbc:
        yield "NRBC", f"{row.nrbc_per_100_wbc:.1f} per 100 white cells"
    if row.me_low is not None and row.me_high is not None:
        ratio = "undefined" if row.me_ratio is None else f"{row.me_ratio:.2f}"
        yield "M:E", f"{ratio} ({row.me_low:.2f} – {row.me_high:.2f})"
    if row.um_per_px is not None:
        yield "scale", f"{row.um_per_px:.3g} µm/px ({_words(row.scale_from or '')})"


def _depths(report: SlideReport) -> dict[str, int]:
    """How deep each kind lies in its taxonomy's tree; nothing where the tables' taxonomy is not a shipped one."""
    if report.row.taxonomy not in shipped_taxonomies():
        return {}
    taxonomy = load_taxonomy(report.row.taxonomy)
    if [t.name for t in taxonomy.cell_types] != [kind.cell_type for kind in report.kinds]:
        return {}
    return {t.name: len(taxonomy.ancestors(t.name)) for t in taxonomy.cell_types}


def failures(outcome: "SlideOutcome") -> list[str]:
    """One line for each thing that could not be counted of a slide, named with its reason."""
    slide = printable(outcome.slide_id)
    lines = [f"{slide}: not counted: {printable(outcome.reason)}"] if outcome.status == "failed" else []
    return lines + [f"{slide}: {failed_line(f)}" for f in outcome.failed_fields]


def failed_line(failed: FailedField) -> str:
    """`field: reason`, or the reason alone where it is the slide's."""
    return ": ".join(printable(part) for part in (failed.field, failed.reason) if part)


def printable(text: str) -> str:
    """`text` with line breaks, terminal controls and broken characters, which a file name may hold, as escapes."""
    return text if text.isprintable() else repr(text)[1:-1]


def _number(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _words(name: str) -> str:
    return name.replace("_", " ")


class LogLines:
    """Listens to a count and writes a line for each slide: what a log file keeps of it."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        """The count begins."""
        self._line(f"{_number(n_slides, 'slide')} with {_number(n_fields, 'field')}")

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        """Not worth a line."""

    def slide_done(self, outcome: "SlideOutcome") -> None:
        """A slide is counted, unchanged or failed."""
        facts = f"{_number(outcome.n_fields, 'field')}, {_number(outcome.n_cells, 'cell')}, {outcome.seconds:.1f} s"
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
        silent = (
            outcome.n_fields if outcome.status == "unchanged" else sum(bool(f.field) for f in outcome.failed_fields)
        )
        self._bar.update(self._fields, advance=silent)
        self._bar.update(self._slides, advance=1)
