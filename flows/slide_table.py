"""A count as the table artifact of its flow run, which Prefect's page reads as Markdown: a line a slide."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlencode

from upath import UPath

from wbc.counting.report import corrected_words, flag_words, printable, read_brief_report
from wbc.counting.slide import SlideOutcome
from wbc.sought import not_sought_words
from wbc.storage.atomic import local_path
from wbc.storage.tables import FailedField, arrow_text
from wbc.taxonomy import Taxonomy
from wbc.types import Slide

REVIEW_URL = "WBC_REVIEW_URL"
PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
LEADING_SPACES = re.compile("^ +")
# Of 10,000 slides the artifact is 2.5 MB: Prefect's server refuses an event of over 1.5 MB, and its page is slow.
MOST_LINES = 2000


def most_telling(outcomes: Sequence[SlideOutcome]) -> list[tuple[int, SlideOutcome]]:
    """The outcomes that the artifact shows, with their places, in their order: all, or as many as it has lines for.

    Then those come first of which something failed.
    """
    entries = list(enumerate(outcomes))
    if len(entries) > MOST_LINES:
        entries.sort(key=lambda entry: not entry[1].has_failures)
    return entries[:MOST_LINES]


def slide_line(outcome: SlideOutcome, slide: Slide, out: UPath, taxonomy: Taxonomy) -> dict[str, str | int]:
    """One slide's result: what became of it, its main cell types in percent, its flags, what failed (all Markdown)."""
    percents, flags = "", ""
    if outcome.status != "failed":
        with suppress(OSError, ValueError):  # the artifact is worth having even where a table was lost meanwhile
            report = read_brief_report(out, outcome.slide_id)
            parents = {t.name for t in taxonomy.cell_types if t.parent is None}
            rows = [row for row in report.cell_types if row.cell_type in parents and row.percent and row.count]
            rows.sort(key=lambda row: -(row.count or 0))
            percents = ", ".join(f"{row.cell_type.replace('_', ' ')} {row.percent:.1f} %" for row in rows)
            flags = ", ".join(report.row.flags)
            if left := not_sought_words(report.row.cells):
                percents += f" ({left} were not looked for)"
            if said := corrected_words(report):
                percents += f" ({said})"
            flags += "".join(f". {label.capitalize()}: {words}" for label, words in flag_words(report.row))
    failures = [outcome.reason] if outcome.reason else []
    lines = [*map(markdown_text, failures), *(field_failure(f, slide) for f in outcome.failed_fields)]
    return {
        "slide": markdown_text(outcome.slide_id),
        "status": outcome.status,
        "fields": outcome.n_fields,
        "failed fields": len(outcome.failed_fields),
        "cells": outcome.n_cells,
        "differential": markdown_text(percents),
        "flags": markdown_text(flags),
        "what failed": "; ".join(lines),
    }


def field_failure(failed: FailedField, slide: Slide) -> str:
    """Markdown: the field's name, the reason, and its address to copy; the reason alone where it is the slide's.

    A browser opens no file of this machine from a page, so the address is text. Where WBC_REVIEW_URL names the review
    page, a link leads to the field there.
    """
    reason = markdown_text(failed.reason)
    path = next((p for p in slide.field_paths if arrow_text(p.name) == failed.field), None)
    if path is None:
        return reason
    address = path.absolute().path if local_path(path) is not None else str(path)
    line = f"{markdown_text(failed.field)}: {reason} ({markdown_text(address)})"
    page = os.environ.get(REVIEW_URL, "")
    if not page.startswith(("http://", "https://")):
        return line
    return f"{line} [review](<{page}?{urlencode({'slide': slide.slide_id, 'field': failed.field})}>)"


def markdown_text(text: str) -> str:
    """`text`, which may hold anything that a file name may, as Markdown that shows it as it stands."""
    escaped = PUNCTUATION.sub(r"\\\1", printable(text))
    return LEADING_SPACES.sub(lambda spaces: "\u00a0" * len(spaces[0]), escaped)  # four spaces would begin code
