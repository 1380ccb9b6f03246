"""OUT knows a slide by its `slide_id` and by its folder's address: neither may come to mean another slide."""

from collections.abc import Iterable

from upath import UPath

from wbc.counting.corrected_cells import amended
from wbc.counting.job import Job
from wbc.counting.standing import stands_unopened
from wbc.storage.corrections import read_corrections, write_corrections
from wbc.storage.counts import change_source, read_source, retire
from wbc.storage.layout import Layout
from wbc.types import Slide

MOST_NAMED = 3


def settle_addresses(slides: Iterable[Slide], job: Job, *, rename: bool) -> tuple[str, ...]:
    """Hold the slides against those that OUT knows, before any is counted. For the run that holds OUT.

    Returns what was renamed, a line each. A row without an address, of an older version, gets its slide's where its
    count stands. Where an id is to be renamed, its row gets the new address; where a folder is to have another id, the
    count under the old one goes to the history, and what people said of its cells goes along. Raises ValueError, with
    both addresses or ids, where there is such a slide and `rename` is not asked for; OSError where OUT cannot be read.
    """
    found = {slide.slide_id: slide for slide in slides}
    known = {slide_id: read_source(job.out, slide_id) for slide_id in Layout(job.out).slide_ids()}
    ids = {source: slide_id for slide_id, source in known.items() if source is not None}
    moved = [s for s in found.values() if known.get(s.slide_id) not in (None, s.source)]
    named_anew = {ids[s.source]: s for s in found.values() if s.source in ids and ids[s.source] != s.slide_id}
    lines = [f"{s.slide_id!r} was {known[s.slide_id]!r} and is {s.source!r} now" for s in moved]
    lines += [f"{s.source!r} is {own_id!r} and would be {s.slide_id!r} too" for own_id, s in named_anew.items()]
    if lines and not rename:
        raise ValueError(_refusal(lines, job.out))
    for own_id, slide in named_anew.items():
        if said := read_corrections(job.out, own_id):  # they are of its pictures, whatever it is called
            write_corrections(job.out, slide.slide_id, amended(read_corrections(job.out, slide.slide_id), said))
    for own_id in named_anew.keys() - found.keys():
        retire(job.out, own_id)
    for slide in found.values():
        if slide.slide_id in known and known[slide.slide_id] != slide.source and stands_unopened(slide, job):
            change_source(job.out, slide.slide_id, slide.source)
    return tuple(lines)


def _refusal(lines: list[str], out: UPath) -> str:
    more = len(lines) - MOST_NAMED
    first = "; ".join(lines[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
    return (
        f"OUT {str(out)!r} knows these slides otherwise: {first}. If they are the same slides, moved, --rename goes on "
        "with them; other slides need another OUT"
    )
