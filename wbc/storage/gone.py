"""Slides in OUT whose folder is not there any more, and pictures that two of its slides share."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from upath import UPath

from wbc.storage.counts import read_source
from wbc.storage.layout import Layout
from wbc.storage.slides import is_gone
from wbc.storage.stamps import read_stamps
from wbc.types import Slide


@dataclass(frozen=True, slots=True)
class GoneSlide:
    """A slide that OUT has a count of and that is not there any more; `source` is None where its row has no address."""

    slide_id: str
    source: str | None


@dataclass(frozen=True, slots=True)
class SharedPictures:
    """Two slides of an OUT that hold `n` pictures of one content, which both count."""

    slide_ids: tuple[str, str]
    n: int


def gone_slides(out: UPath, found: Iterable[str] = ()) -> list[GoneSlide]:
    """The slides in OUT that are not there any more, beside those that were `found`.

    Among them are those without an address, which an older version counted: where they lay nobody knows.
    """
    known = {slide_id: read_source(out, slide_id) for slide_id in sorted(set(Layout(out).slide_ids()) - set(found))}
    return [GoneSlide(slide_id, source) for slide_id, source in known.items() if source is None or is_gone(source)]


def shared_pictures(out: UPath) -> list[SharedPictures]:
    """Pairs of slides in OUT that hold the same pictures, as far as the files were read."""
    holders: dict[str, set[str]] = defaultdict(set)
    for slide_id in _likely_to_share(out, Layout(out).slide_ids()):
        for digest in _digests(out, slide_id):
            holders[digest].add(slide_id)
    pairs = Counter(pair for ids in holders.values() for pair in combinations(sorted(ids), 2))
    return [SharedPictures(pair, n) for pair, n in sorted(pairs.items())]


def _likely_to_share(out: UPath, slide_ids: list[str]) -> list[str]:
    """The slides that hold a picture of another, and very seldom some that do not.

    Of a million fields this keeps twelve bytes each, and sorts eight of them, where their digests would take half a
    gigabyte.
    """
    hashes, holders = array("q"), array("i")
    for i, slide_id in enumerate(slide_ids):
        own = set(map(hash, _digests(out, slide_id)))
        hashes.extend(own)
        holders.extend([i] * len(own))
    ranked = np.sort(np.frombuffer(hashes, np.int64))
    again = np.unique(ranked[1:][ranked[1:] == ranked[:-1]])
    del ranked
    is_shared = np.isin(np.frombuffer(hashes, np.int64), again)
    return [slide_ids[i] for i in np.unique(np.frombuffer(holders, np.int32)[is_shared])]


def _digests(out: UPath, slide_id: str) -> list[str]:
    """The digests of a slide's fields, of those that were read."""
    return [record.sha256 for record in read_stamps(out, Slide(slide_id, ())).values() if record.sha256]


def slides_to_prune(out: UPath, slide_ids: Collection[str] = ()) -> list[GoneSlide]:
    """The slides in OUT whose counts are to go: those named, else those that are not there any more.

    Raises ValueError where one that is named has no count, and where none is named and not a single slide is there: a
    disk that is not mounted is likelier than that.
    """
    counted = Layout(out).slide_ids()
    if slide_ids:
        unknown = sorted(set(slide_ids) - set(counted))
        if unknown:
            raise ValueError(f"{str(out)!r} has no count of slide {unknown[0]!r}")
        return [GoneSlide(slide_id, read_source(out, slide_id)) for slide_id in sorted(set(slide_ids))]
    gone = [slide for slide in gone_slides(out) if slide.source is not None]
    if len(gone) == len(counted):
        raise ValueError(
            f"not one slide of {str(out)!r} is where it was, as {gone[0].source!r}: is a disk not mounted? "
            "To move counts all the same, name the slides"
        )
    return gone
