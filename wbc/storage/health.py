"""Whether an OUT is sound: what in it cannot be read, stands alone, or was left behind."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from upath import UPath

from wbc.storage.counts import has_evidence, read_count, read_evidence
from wbc.storage.layout import TABLES, Layout


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in an OUT that a person should know of: where it is, and what is wrong or odd about it."""

    path: str
    fact: str


def inspect(out: UPath) -> Iterator[Finding]:
    """Broken and torn counts, tables of slides that have no row in `slides`, and what killed runs left; reads only.

    What is named here costs no count: the next run counts such slides again and sweeps what was left.
    """
    layout = Layout(out)
    slide_ids = layout.slide_ids()
    for slide_id in slide_ids:
        try:
            if has_evidence(read_count(out, slide_id).row):
                read_evidence(out, slide_id)
        except (OSError, ValueError, pa.ArrowException) as error:
            yield Finding(str(layout.table("slides", slide_id)), f"this count cannot be read: {error}")
    for table in TABLES:
        for slide_id in sorted(set(layout.slide_ids(table)) - set(slide_ids)):
            yield Finding(str(layout.table(table, slide_id)), "has no row in slides: its count was never finished")
    for path in layout.leftovers():
        yield Finding(str(path), "was left by a run that was killed, unless one is running now")
