"""What one step of a count hands to the next, from the fields of a slide to what became of it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.storage.stamps import FieldStamp
from wbc.storage.tables import DuplicateField, FailedField
from wbc.types import FieldKey, Precision, ScaleFrom, Slide

if TYPE_CHECKING:
    from wbc.storage.pixels import StoredPixels

Alike = tuple[int, int, str]  # height and width in px, camera
SlideStatus = Literal["counted", "unchanged", "failed"]


@dataclass(frozen=True, slots=True)
class IngestedField:
    """What one read of a field's file told: its stamp and digest ("" where it could not be read), pixels and scale.

    A field that failed has a `failure`, the reason, and no `pixels`.
    """

    path: UPath
    stamp: FieldStamp
    sha256: str = ""
    pixels: "StoredPixels | None" = None
    um_per_px: float | None = None
    camera: str = ""
    failure: str | None = None
    decode_seconds: float = 0.0
    store_seconds: float = 0.0

    @property
    def alike(self) -> Alike:
        """What fields photographed at one scale have in common. Raises ValueError where it could not be read."""
        if self.pixels is None:
            raise ValueError(f"{self.path.name} could not be read: {self.failure}")
        return self.pixels.height, self.pixels.width, self.camera


@dataclass(frozen=True, slots=True)
class ReadyField:
    """A field to count: its address, its file and that file's digest, the pixels stored of it, and its scale."""

    key: FieldKey
    path: UPath
    sha256: str
    pixels: "StoredPixels"
    um_per_px: float | None


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

    def ready(self, index: int, um_per_px: float | None = None) -> ReadyField:
        """A field to count at `um_per_px`. Raises ValueError for one that could not be read."""
        field = self.fields[index]
        if field.pixels is None:
            raise ValueError(f"{field.path.name} could not be read: {field.failure}")
        return ReadyField(FieldKey(self.slide.slide_id, index), field.path, field.sha256, field.pixels, um_per_px)


@dataclass(frozen=True, slots=True)
class FieldSeconds:
    """The time that a field took in the detector and in the classifier: its share, where several went together."""

    index: int
    detect: float
    classify: float


@dataclass(frozen=True, slots=True, eq=False)
class CountedChunk:
    """Cells of some fields, row by row: field index (N,), box (N,4) in field px, cell type, both scores (N,).

    `failures` are pairs of a field's index and why it could not be counted; `precisions` the number formats that the
    models ran in; `seconds` the time that each field took.
    """

    fields: NDArray[np.int64]
    boxes: NDArray[np.float32]
    cell_types: tuple[str, ...]
    scores: NDArray[np.float32]
    type_scores: NDArray[np.float32]
    failures: tuple[tuple[int, str], ...] = ()
    precisions: frozenset[Precision] = frozenset()
    seconds: tuple[FieldSeconds, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> "CountedChunk":
        """No cells."""
        none = np.zeros(0, np.float32)
        return CountedChunk(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), (), none, none)

    @staticmethod
    def failed(failures: "tuple[tuple[int, str], ...]") -> "CountedChunk":
        """No cells, but why not."""
        return replace(CountedChunk.empty(), failures=failures)

    @staticmethod
    def concatenate(parts: "list[CountedChunk]") -> "CountedChunk":
        """All parts, in order."""
        whole = [CountedChunk.empty(), *parts]
        return CountedChunk(
            np.concatenate([c.fields for c in whole]),
            np.concatenate([c.boxes for c in whole]),
            tuple(cell_type for c in whole for cell_type in c.cell_types),
            np.concatenate([c.scores for c in whole]),
            np.concatenate([c.type_scores for c in whole]),
            tuple(failure for c in whole for failure in c.failures),
            frozenset[Precision]().union(*(c.precisions for c in whole)),
            tuple(seconds for c in whole for seconds in c.seconds),
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """µm per px and where it came from; both None where nothing told it."""

    um_per_px: float | None
    source: ScaleFrom | None


@dataclass(frozen=True, slots=True, eq=False)
class CountedSlide:
    """What counting a slide came to, ready to commit: the scale of each field counted, by its index, and the cells.

    `began` is when stage 2 did, on the monotonic clock.
    """

    ingested: Ingested
    scales: dict[int, Scale]
    cells: CountedChunk
    began: float

    @property
    def precision(self) -> Precision | None:
        """The number format that the models ran in; `mixed` where workers differ, None where no model ran."""
        formats = self.cells.precisions
        return "mixed" if len(formats) > 1 else next(iter(formats), None)

    @property
    def failures(self) -> dict[int, str]:
        """Why fields failed, by their index, in their order: when they were read, or since."""
        read = {i: f.failure for i, f in enumerate(self.ingested.fields) if f.failure is not None}
        return dict(sorted((read | dict(self.cells.failures)).items()))

    @property
    def failed_fields(self) -> tuple[FailedField, ...]:
        """The fields that failed, by name."""
        names = [path.name for path in self.ingested.slide.field_paths]
        return tuple(FailedField(names[i], reason) for i, reason in self.failures.items())

    @property
    def duplicate_fields(self) -> tuple[DuplicateField, ...]:
        """The fields that show the same picture as an earlier one, by name."""
        names = [path.name for path in self.ingested.slide.field_paths]
        return tuple(DuplicateField(names[i], names[same_as]) for i, same_as in self.ingested.duplicates.items())

    @property
    def reason(self) -> str | None:
        """Why the slide failed as a whole: it has no field, or none that could be counted. None where it did not."""
        if not self.ingested.fields:
            return "the folder holds no image"
        if len(self.failures) < len(self.ingested.fields):
            return None
        first = self.failed_fields[0]
        return f"no field could be counted; the first, {first.field}: {first.reason}"

    @property
    def fields(self) -> tuple[IngestedField, ...]:
        """The fields as ingested; those that failed since have no digest, as what is counted is not what they hold."""
        lost = dict(self.cells.failures)
        return tuple(replace(f, sha256="") if i in lost else f for i, f in enumerate(self.ingested.fields))


@dataclass(frozen=True, slots=True)
class SlideFailure:
    """A slide that could not be counted as a whole, and why."""

    slide: Slide
    reason: str


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """What became of a slide: counted now, unchanged since it was counted, or failed as a whole.

    `reason` says why it failed, or what else could not be done.
    """

    slide_id: str
    status: SlideStatus
    n_fields: int
    n_cells: int
    failed_fields: tuple[FailedField, ...]
    seconds: float
    reason: str = ""
