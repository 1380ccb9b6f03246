"""A count for a terminal: a slide's differential as a table, and a line for everything that failed."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from wbc.counting.report import SlideReport, corrected_words, flag_words, printable, report_taxonomy
from wbc.sought import not_sought_words
from wbc.storage.tables import FailedField, SlideRow
from wbc.taxonomy import UNIDENTIFIED, Taxonomy
from wbc.types import DifferentialRow

if TYPE_CHECKING:
    from wbc.counting.handover import SlideOutcome

Line = tuple[str, str, str, str, str]  # cell type, count, percent, limits, corrected percentage with limits

NOT_MEASURED, NOT_TOLD = "not measured", "not told"


def report_table(report: SlideReport) -> RenderableType:
    """A slide's differential for a terminal: cell types with counts, percentages and 95 % limits; flags; failed fields.

    Where misnaming was undone, a column more has the percentages that are left, with limits that hold it too.

    Finer types stand below their parent, and are left out where no cell has them; the parent's cells that have none of
    the finer types are a line of their own, so that the lines below a parent add up to it. Types outside the
    differential stand below the line.
    """
    is_corrected = any(row.percent_corrected is not None for row in report.cell_types)
    headings = ("count", "%", "95 % limits", "misnaming undone")[: 4 if is_corrected else 3]
    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("cell type", min_width=26)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for line in _lines(report, in_differential=True):
        table.add_row(*line[: 1 + len(headings)])
    table.add_section()
    for line in _lines(report, in_differential=False):
        table.add_row(*line[: 1 + len(headings)], style="dim")
    facts = [Text(f"{name:<10}{value}") for name, value in _facts(report)]
    body = Group(table, *facts, *_warnings(report.row))
    return Group(_headline(report.row), Padding(body, (0, 0, 1, 2), expand=False))


def _lines(report: SlideReport, *, in_differential: bool) -> Iterator[Line]:
    """The lines of the cell types in the differential, or of those outside it, a tree after the other."""
    rows, taxonomy = {row.cell_type: row for row in report.cell_types}, report_taxonomy(report)
    for row in report.cell_types:
        parent = taxonomy.cell_type(row.cell_type).parent if taxonomy else None
        is_root = parent is None or rows[parent].in_differential != in_differential
        if row.in_differential == in_differential and is_root:
            yield from _branch(row, rows, taxonomy, 0)


def _branch(
    row: DifferentialRow, rows: Mapping[str, DifferentialRow], taxonomy: Taxonomy | None, depth: int
) -> Iterator[Line]:
    """A type's line and those below it. A coarse type that the differential looks for is shown where none was counted:
    its upper limit is worth knowing, or that nothing could have told it."""
    finer = [rows[name] for name in taxonomy.children(row.cell_type)] if taxonomy else []
    is_untold = row.count is None and row.in_differential
    if row.count or (taxonomy and depth == 0 and (row.percent is not None or is_untold)):
        yield _line(row, depth)
    for child in finer:
        if child.in_differential == row.in_differential:
            yield from _branch(child, rows, taxonomy, depth + 1)
    own = row.count or 0
    rest = own - sum(child.count or 0 for child in finer)
    if finer and 0 < rest < own:
        share = "" if row.percent is None else f"{row.percent * rest / own:.1f}"
        yield "  " * (depth + 1) + "not told apart", f"{rest:,}", share, "", ""


def _line(row: DifferentialRow, depth: int) -> Line:
    name = "  " * depth + _words(row.cell_type)
    corrected = "" if depth or row.cell_type == UNIDENTIFIED else NOT_MEASURED
    if row.percent_corrected is not None:
        corrected = f"{row.percent_corrected:.1f} ({row.low:.0f} – {row.high:.0f})"
    if row.count is None:
        return name, "", "", NOT_TOLD, corrected
    if row.percent is None:
        return name, f"{row.count:,}", "", "beside", ""
    return name, f"{row.count:,}", f"{row.percent:.1f}", f"{row.ci_low:.1f} – {row.ci_high:.1f}", corrected


def _headline(row: SlideRow) -> Text:
    if row.reason is not None:
        return Text.assemble((printable(row.slide_id), "bold"), ("  not counted", "red"))
    fields_read = f"{row.n_fields - row.n_fields_failed} of {counted(row.n_fields, 'field')}"
    facts = f"  {fields_read} · {counted(row.n_differential, 'cell')} in the differential · {row.taxonomy}"
    return Text.assemble((printable(row.slide_id), "bold"), facts)


def _facts(report: SlideReport) -> Iterator[tuple[str, str]]:
    row = report.row
    if row.nrbc_per_100_wbc:
        yield "NRBC", f"{row.nrbc_per_100_wbc:.1f} per 100 white cells"
    if row.me_low is not None and row.me_high is not None:
        ratio = "undefined" if row.me_ratio is None else f"{row.me_ratio:.2f}"
        yield "M:E", f"{ratio} ({row.me_low:.2f} – {row.me_high:.2f})"
    if left := not_sought_words(row.cells):
        yield "cells", f"{left} were not looked for"
    if said := corrected_words(report):
        yield "corrected", said
    if row.um_per_px is not None:
        yield "scale", f"{row.um_per_px:.3g} µm/px ({_words(row.scale_from or '')})"


def _warnings(row: SlideRow) -> Iterator[Text]:
    if row.flags:
        yield Text(f"{'flags':<10}{', '.join(row.flags)}", style="yellow")
    for label, words in flag_words(row):
        yield Text(f"{label:<10}{words}", style="yellow")
    if row.reason is not None:
        yield Text(f"{'failed':<10}{printable(row.reason)}", style="red")
    for failed in row.failed_fields:
        yield Text(f"{'failed':<10}{failed_line(failed)}", style="red")


def failures(outcome: "SlideOutcome") -> list[str]:
    """One line for each thing of a slide that could not be counted, with the reason."""
    slide = printable(outcome.slide_id)
    not_counted = "not counted: " if outcome.status == "failed" else ""
    lines = [f"{slide}: {not_counted}{printable(outcome.reason)}"] if outcome.reason else []
    return lines + [f"{slide}: {failed_line(failed)}" for failed in outcome.failed_fields]


def failed_line(failed: FailedField) -> str:
    """`field: reason`."""
    return f"{printable(failed.field)}: {printable(failed.reason)}"


def counted(n: int, noun: str) -> str:
    """`1 field`, `1,234 fields`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _words(name: str) -> str:
    return name.replace("_", " ")
