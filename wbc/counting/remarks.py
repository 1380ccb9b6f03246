"""What became of slides, and what to know beside the counts: what was passed over, has gone, is there twice."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from upath import UPath

from wbc.counting.handover import SlideOutcome
from wbc.counting.report import printable
from wbc.storage.gone import GoneSlide, SharedPictures, gone_slides, shared_pictures
from wbc.storage.slides import Kind, PassedOver, Survey

MOST_NAMED = 3
# The kinds of what is passed over in the order in which they are told, one and several.
_WORDS: dict[Kind, tuple[str, str]] = {
    "unread_picture": ("picture of a kind that is not read", "pictures of kinds that are not read"),
    "unreadable_folder": ("folder that cannot be read", "folders that cannot be read"),
    "results": ("folder with results of a count", "folders with results of counts"),
    "linked_again": ("folder that is there already", "folders that are there already"),
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "other_file": ("file that is no picture by its name", "files that are no pictures by their names"),
}
_LOSSES: tuple[Kind, ...] = ("unread_picture", "unreadable_folder")


@dataclass(frozen=True, slots=True)
class Remarks:
    """What was passed over below SLIDES, slides of OUT that have gone, pairs that share pictures, what was renamed."""

    passed_over: tuple[PassedOver, ...] = ()
    gone: tuple[GoneSlide, ...] = ()
    shared: tuple[SharedPictures, ...] = ()
    renamed: tuple[str, ...] = ()

    def notes(self) -> list[str]:
        """Lines on what need not worry: what was passed over and holds no field, a line a kind."""
        return _passed_over_lines(self.passed_over, [kind for kind in _WORDS if kind not in _LOSSES])

    def warnings(self) -> list[str]:
        """Lines that a person must not miss: counts of slides that have gone, pictures counted twice or not at all."""
        lost = _passed_over_lines(self.passed_over, _LOSSES)
        renamed = [f"renamed: {line}; an earlier count of other pictures is in the history" for line in self.renamed]
        return [*map(printable, renamed), *gone_lines(self.gone), *_shared_lines(self.shared), *lost]

    def as_json(self) -> dict[str, Any]:
        """JSON's types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CountReport:
    """What became of every slide, in the order of their ids, and what else there is to say."""

    outcomes: tuple[SlideOutcome, ...]
    remarks: Remarks = field(default_factory=Remarks)

    @property
    def failed(self) -> tuple[SlideOutcome, ...]:
        """Those that failed, or of which something did."""
        return tuple(o for o in self.outcomes if o.has_failures)


def remarks_on(survey: Survey, out: UPath, renamed: tuple[str, ...] = ()) -> Remarks:
    """What is to be said of a survey and of the OUT that its slides are counted into, with what was `renamed`."""
    gone = gone_slides(out, [slide.slide_id for slide in survey.slides])
    return Remarks(survey.passed_over, tuple(gone), tuple(shared_pictures(out)), renamed)


def gone_lines(gone: Sequence[GoneSlide]) -> list[str]:
    """Lines on slides that are not there any more."""
    lost = [f"{slide.slide_id} ({slide.source})" for slide in gone if slide.source is not None]
    unknown = [slide.slide_id for slide in gone if slide.source is None]
    lines = []
    if lost:
        lines.append(f"in OUT, but not there any more: {_some(lost)}; `wbc prune` moves their counts to the history")
    if unknown:
        lines.append(
            f"in OUT from an older version, and not among these slides: {_some(unknown)}; "
            "`wbc prune OUT SLIDE_ID` moves such a count to the history"
        )
    return [printable(line) for line in lines]


def _shared_lines(shared: Sequence[SharedPictures]) -> list[str]:
    """A line for each of the first few pairs of slides that share pictures."""
    lines = [f"{_n(s.n, 'picture')} counted in {' and again in '.join(s.slide_ids)}" for s in shared[:MOST_NAMED]]
    more = len(shared) - MOST_NAMED
    return [printable(line) for line in lines] + ([f"{_n(more, 'more pair')} of slides like these"] if more > 0 else [])


def _passed_over_lines(passed_over: Iterable[PassedOver], kinds: Iterable[Kind]) -> list[str]:
    """A line for each kind: how many were passed over, and the first few by name."""
    lines = []
    for kind in kinds:
        names = [p.path + (f" ({p.why})" if p.why else "") for p in passed_over if p.kind == kind]
        if names:
            lines.append(printable(f"passed over: {len(names):,} {_WORDS[kind][len(names) > 1]}: {_some(names)}"))
    return lines


def _n(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
