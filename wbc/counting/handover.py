"""What one step of a count hands to the next, from the fields of a slide to what became of it.

What is pickled for each field has no slots, here and in `types`, `stamps` and `pixels`: with them, dataclasses pickle
in Python, which takes three times as long.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from upath import UPath

from wbc.engine import Engine
from wbc.sought import Sought
from wbc.storage.detections import Kinds, SlideDetections
from wbc.storage.stamps import FieldStamp
from wbc.storage.tables import FailedField, SlideRow
from wbc.types import FieldKey, Precision, ScaleFrom, Slide

if TYPE_CHECKING:
    from wbc.storage.pixels import StoredPixels

Alike = tuple[int, int, str]  # height and width in px, camera
SlideStatus = Literal["counted", "unchanged", "failed"]


@dataclass(frozen=True)
class IngestedField:
    """What one read of a field's file told: its stamp and digest ("" where it could not be read), pixels and scale.

    A field that failed has a `failure`, the reason, and no `pixels`.
    """

    stamp: FieldStamp
    sha256: str = ""
    pixels: "StoredPixels | None" = None
    um_per_px: float | None = None
    camera: str = ""
    failure: str | None = None
    decode_seconds: float = 0.0
    store_seconds: float = 0.0

    @property
    def name(self) -> str:
        """Its file's name."""
        return self.stamp.name

    @property
    def alike(self) -> Alike:
        """What fields photographed at one scale have in common. Raises ValueError where it could not be read."""
        if self.pixels is None:
            raise ValueError(f"{self.name} could not be read: {self.failure}")
        return self.pixels.height, self.pixels.width, self.camera


@dataclass(frozen=True)
class ReadyField:
    """A field to count: its address, its file and that file's digest, the pixels stored of it, and its scale.

    `is_whole` has it looked at whole, whatever cells are sought.
    """

    key: FieldKey
    folder: UPath
    name: str
    sha256: str
    pixels: "StoredPixels"
    um_per_px: float | None
    is_whole: bool = False

    @property
    def path(self) -> UPath:
        """Its file, made a path where it is asked for: on a worker."""
        return self.folder / self.name


@dataclass(frozen=True, slots=True)
class Ingested:
    """A slide whose fields are in its Zarr group, ready to count; or, `done`, one whose count stands already."""

    slide: Slide
    fields: tuple[IngestedField, ...]
    done: bool
    seconds: float

    @property
    def duplicates(self) -> dict[int, int]:
        """Fields with the pixels of an earlier one, by index: copies, links, the same picture in another format."""
        first: dict[StoredPixels, int] = {}
        whole = [(i, field.pixels) for i, field in enumerate(self.fields) if field.pixels is not None]
        earliest = {i: first.setdefault(pixels, i) for i, pixels in whole}
        return {i: same_as for i, same_as in earliest.items() if same_as != i}

    @property
    def to_count(self) -> tuple[int, ...]:
        """Indices of the fields whose pixels are stored, each picture once."""
        duplicates = self.duplicates
        return tuple(i for i, f in enumerate(self.fields) if f.pixels is not None and i not in duplicates)

    def ready(self, index: int, um_per_px: float | None = None, *, is_whole: bool = False) -> ReadyField:
        """A field to count at `um_per_px`, `is_whole` or not. Raises ValueError for one that could not be read."""
        field = self.fields[index]
        if field.pixels is None:
            raise ValueError(f"{field.name} could not be read: {field.failure}")
        key, folder = FieldKey(self.slide.slide_id, index), self.slide.folder
        return ReadyField(key, folder, field.name, field.sha256, field.pixels, um_per_px, is_whole)


@dataclass(frozen=True)
class ModelSeconds:
    """The time that a field took in the detector and in the classifier: its share, where several went together."""

    index: int
    detect: float
    classify: float


@dataclass(frozen=True, slots=True, eq=False)
class DetectedChunk:
    """What the models said of some fields, the classifier by its `kinds` (None where there is none).

    `failures` are pairs of a field's index and why it could not be counted; `precisions` the number formats that the
    models ran in, `engines` what ran the detector; `seconds` the time that each field took; `red_cells_um` how large a
    typical red cell is at the scale of the field with this index, where enough were seen.
    """

    detections: SlideDetections
    kinds: Kinds | None = None
    failures: tuple[tuple[int, str], ...] = ()
    precisions: frozenset[Precision] = frozenset()
    engines: frozenset[Engine] = frozenset()
    seconds: tuple[ModelSeconds, ...] = ()
    red_cells_um: Mapping[int, float] = field(default_factory=dict)

    @staticmethod
    def failed(failures: "tuple[tuple[int, str], ...]") -> "DetectedChunk":
        """No boxes, but why not."""
        return DetectedChunk(SlideDetections.empty(), failures=failures)

    @staticmethod
    def concatenate(parts: "list[DetectedChunk]") -> "DetectedChunk":
        """All parts, in order; those with a classifier have the same."""
        return DetectedChunk(
            SlideDetections.concatenate([c.detections for c in parts]),
            next((c.kinds for c in parts if c.kinds is not None), None),
            tuple(failure for c in parts for failure in c.failures),
            frozenset[Precision]().union(*(c.precisions for c in parts)),
            frozenset[Engine]().union(*(c.engines for c in parts)),
            tuple(seconds for c in parts for seconds in c.seconds),
            {index: um for c in parts for index, um in c.red_cells_um.items()},
        )

    def n_cells(self, min_score: float) -> int:
        """How many boxes have at least this score."""
        return int((self.detections.scores >= min_score).sum())


@dataclass(frozen=True, slots=True)
class Scale:
    """µm per px and where it came from; both None where nothing told it."""

    um_per_px: float | None
    source: ScaleFrom | None


@dataclass(frozen=True, slots=True, eq=False)
class DetectedSlide:
    """What the models said of a slide, ready to count: the scale of each field to count, by its index, and all boxes.

    `began` is when stage 2 did, on the monotonic clock.
    """

    ingested: Ingested
    scales: dict[int, Scale]
    chunk: DetectedChunk
    began: float

    @property
    def precision(self) -> Precision | None:
        """The number format that the models ran in; `mixed` where workers differ, None where no model ran."""
        formats = self.chunk.precisions
        return "mixed" if len(formats) > 1 else next(iter(formats), None)

    @property
    def engine(self) -> Engine | None:
        """What ran the detector; `mixed` where workers differ, None where it did not run."""
        engines = self.chunk.engines
        return "mixed" if len(engines) > 1 else next(iter(engines), None)

    @property
    def fields(self) -> tuple[IngestedField, ...]:
        """The fields as ingested; those that failed since have no digest, as what is counted is not what they hold."""
        lost = dict(self.chunk.failures)
        return tuple(
            replace(f, sha256="", failure=lost[i]) if i in lost else f for i, f in enumerate(self.ingested.fields)
        )


@dataclass(frozen=True, slots=True)
class SlideFailure:
    """A slide that could not be counted as a whole, and why."""

    slide: Slide
    reason: str


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """What became of a slide: counted now, unchanged since it was counted, or failed as a whole.

    `reason` says why it failed, or what else could not be done; `cells` are those that were looked for.
    """

    slide_id: str
    status: SlideStatus
    n_fields: int
    n_cells: int
    failed_fields: tuple[FailedField, ...]
    seconds: float
    reason: str = ""
    cells: Sought = "all"

    @property
    def has_failures(self) -> bool:
        """Whether it failed, or something of it."""
        return bool(self.reason or self.failed_fields)


def outcome_of(row: SlideRow, status: Literal["counted", "unchanged"], seconds: float) -> SlideOutcome:
    """What a slide's committed row says became of it: it failed where the row has a reason, else `status`."""
    became: SlideStatus = "failed" if row.reason is not None else status
    reason = row.reason or ""
    return SlideOutcome(
        row.slide_id, became, row.n_fields, row.n_cells, row.failed_fields, seconds, reason, cells=row.cells
    )
