"""A count as the table artifact of its flow run: a line a slide, with links to the fields that failed."""

from contextlib import suppress
from urllib.parse import quote

from upath import UPath

from wbc.counting.report import printable, read_report
from wbc.counting.slide import SlideOutcome
from wbc.storage.atomic import local_path
from wbc.storage.tables import FailedField, arrow_text
from wbc.taxonomy import Taxonomy
from wbc.types import Slide


def slide_line(outcome: SlideOutcome, slide: Slide, out: UPath, taxonomy: Taxonomy) -> dict[str, str | int]:
    """One slide's result: what became of it, its coarse kinds in percent, its flags, what failed (Markdown links)."""
    percents, flags = "", ""
    if outcome.status != "failed":
        with suppress(OSError, ValueError):  # the artifact is worth having also where a table was lost meanwhile
            report = read_report(out, outcome.slide_id)
            coarse = {t.name for t in taxonomy.cell_types if t.parent is None}
            seen = [row for row in report.cell_types if row.cell_type in coarse and row.percent and row.count]
            seen.sort(key=lambda row: -row.count)
            percents = ", ".join(f"{row.cell_type.replace('_', ' ')} {row.percent:.1f} %" for row in seen)
            flags = ", ".join(report.row.flags)
    links = [field_link(failed, slide) for failed in outcome.failed_fields]
    return {
        "slide": printable(outcome.slide_id),
        "status": outcome.status,
        "fields": outcome.n_fields,
        "failed fields": sum(bool(f.field) for f in outcome.failed_fields),
        "cells": outcome.n_cells,
        "differential": percents,
        "flags": flags,
        "what failed": "; ".join(([printable(outcome.reason)] if outcome.reason else []) + links),
    }


def field_link(failed: FailedField, slide: Slide) -> str:
    """Markdown: the field's name as a link to its file, and the reason; the reason alone where it is the slide's."""
    path = next((p for p in slide.field_paths if arrow_text(p.name) == failed.field), None)
    if path is None:
        return printable(failed.reason)
    address = str(path)
    if local_path(path) is not None:
        address = "file://" + quote(path.absolute().path.encode(errors="surrogateescape"))
    name = printable(failed.field).replace("[", "\\[").replace("]", "\\]")
    return f"[{name}](<{address}>): {printable(failed.reason)}"
