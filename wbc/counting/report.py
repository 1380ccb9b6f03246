"""A committed count as data, for the terminal, for scripts and for the flow run's page; what became of a slide."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from upath import UPath

from wbc.storage.counts import read_count, read_tables
from wbc.storage.layout import Layout
from wbc.storage.tables import SlideRow
from wbc.taxonomy import Taxonomy, load_taxonomy, shipped_taxonomies
from wbc.types import WHOLE_RED_CELL_UM, DifferentialRow

if TYPE_CHECKING:
    from wbc.counting.handover import SlideOutcome


FITTING = 1.15  # red cells that differ by less than this factor from those of most slides fit the scale


@dataclass(frozen=True, slots=True)
class SlideReport:
    """A slide's committed count: its row in `slides` and its rows in `differentials`, in the taxonomy's order.

    `reviewers` are the people who named some of its cells.
    """

    row: SlideRow
    cell_types: tuple[DifferentialRow, ...]
    reviewers: tuple[str, ...] = ()


def read_report(out: UPath, slide_id: str) -> SlideReport:
    """A slide's count from its tables. Raises FileNotFoundError where there is none, ValueError where it is broken."""
    count = read_count(out, slide_id)
    people = count.cells["corrected_by"].unique().drop_null() if "corrected_by" in count.cells.column_names else []
    reviewers = tuple(sorted(str(person) for person in people))
    return _report(out, count.row, count.differentials, reviewers)


def read_brief_report(out: UPath, slide_id: str) -> SlideReport:
    """The same without opening the slide's cells, which are many, where nobody named any: they may be broken."""
    row, tables = read_tables(out, slide_id, ("differentials",))
    return read_report(out, slide_id) if row.n_corrected else _report(out, row, tables["differentials"], ())


def _report(out: UPath, row: SlideRow, differentials: pa.Table, reviewers: tuple[str, ...]) -> SlideReport:
    lines = differentials.drop_columns("slide_id").to_pylist()
    try:
        return SlideReport(row, tuple(DifferentialRow(**line) for line in lines), reviewers)
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"{str(Layout(out).table('differentials', row.slide_id))!r} holds no differential: {error}"
        ) from error


def read_reports(out: UPath, slide_ids: Iterable[str]) -> tuple[dict[str, SlideReport], dict[str, str]]:
    """The counts of some slides by their ids; and of those that cannot be read, why."""
    reports, broken = {}, {}
    for slide_id in slide_ids:
        try:
            reports[slide_id] = read_report(out, slide_id)
        except (OSError, ValueError) as error:
            broken[slide_id] = f"{error}; the next `wbc count` counts it again"
    return reports, broken


def report_taxonomy(report: SlideReport) -> Taxonomy | None:
    """The taxonomy of a count, where it is a shipped one with just these cell types: the tables name it, no more."""
    if report.row.taxonomy not in shipped_taxonomies():
        return None
    taxonomy = load_taxonomy(report.row.taxonomy)
    is_same = [t.name for t in taxonomy.cell_types] == [row.cell_type for row in report.cell_types]
    return taxonomy if is_same else None


def report_json(report: SlideReport) -> dict[str, Any]:
    """JSON's types: the columns of `slides`, `reviewers`, and `differential`, a list of the rows of `differentials`.

    An infinite `me_high` is null, as JSON has no infinity: `me_low` is then a number.
    """
    values = asdict(report.row) | {"counted_at": report.row.counted_at.isoformat()}
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return finite | {"reviewers": list(report.reviewers), "differential": [asdict(row) for row in report.cell_types]}


def outcome_json(outcome: "SlideOutcome", report: SlideReport | None) -> dict[str, Any]:
    """What became of a slide, with its count where there is one: `status` and `reason` beside `report_json`'s keys."""
    became = {"slide_id": outcome.slide_id, "status": outcome.status, "reason": outcome.reason}
    return became | (report_json(report) if report else {})


def corrected_words(report: SlideReport) -> str:
    """How many of a slide's cells people named, and who; empty where nobody did."""
    n = report.row.n_corrected
    return f"{n:,} cell{'' if n == 1 else 's'} named by {', '.join(map(printable, report.reviewers))}" if n else ""


def flag_words(row: SlideRow) -> list[tuple[str, str]]:
    """What follows from a slide's flags that do not speak for themselves: of what, and the words."""
    words = {
        "fields_overlap": ("overlap", _overlap_words),
        "scale_unknown": ("scale", _unknown_scale_words),
        "scale_doubtful": ("scale", _doubtful_scale_words),
        "unfamiliar": ("names", _unfamiliar_words),
        "unfamiliar_fields": ("names", _unfamiliar_fields_words),
        "types_not_told": ("types", _not_told_words),
    }
    return [(label, tell(row)) for flag, (label, tell) in words.items() if flag in row.flags]


def _overlap_words(row: SlideRow) -> str:
    n = row.n_seen_again or 0
    cells = "1 white cell is" if n == 1 else f"{n:,} white cells are"
    return f"{cells} seen in a second field, too, and counted once; red cells and platelets there count in each field"


def _unknown_scale_words(row: SlideRow) -> str:
    words = "not known of some fields, which were counted at the detector's own; --um-per-px would give it"
    if row.um_per_px is not None or row.red_cell_um is None:
        return words
    return (
        f"{words} (a red cell would be {row.red_cell_um:.1f} µm across, where they are about {WHOLE_RED_CELL_UM:.1f})"
    )


def _doubtful_scale_words(row: SlideRow) -> str:
    size, scale = row.red_cell_um, row.um_per_px
    whole = f"{WHOLE_RED_CELL_UM:.1f}"
    if size is None or scale is None or 1 / FITTING <= size / WHOLE_RED_CELL_UM <= FITTING:
        return f"at the scale of some fields red cells would not be about {whole} µm across (`fields` says of which)"
    return (
        f"at {scale:.3g} µm/px a red cell of this slide would be {size:.1f} µm across, where they are about {whole}: "
        f"about {scale * WHOLE_RED_CELL_UM / size:.2g} µm/px would fit; cells are missed and misnamed at a wrong scale"
    )


def _unfamiliar_words(row: SlideRow) -> str:
    return (
        f"unlike any slide the classifier has learnt from ({row.unfamiliarity or 0:.1f} times as far as those go): "
        "only cells it is surer of are named, types that it cannot tell on such slides are among the unidentified "
        "ones, and some names are wrong; check them by eye"
    )


def _not_told_words(row: SlideRow) -> str:
    return "cells of a type that is not told count as another type or as unidentified: its share is not known, not 0"


def _unfamiliar_fields_words(row: SlideRow) -> str:
    return (
        "some fields are unlike any that the classifier has learnt from (`unfamiliarity` in `fields` says which): only "
        "cells it is surer of are named there, and misnaming is not undone on this slide; check them by eye"
    )


def printable(text: str) -> str:
    """`text` with line breaks, terminal controls and broken characters, which a file name may hold, as escapes."""
    return text if text.isprintable() else repr(text)[1:-1]
