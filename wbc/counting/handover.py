"""What one step of a count hands to the next, from the fields of a slide to what became of it."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wbc.storage.stamps import FieldStamp
from wbc.storage.tables import FailedField
from wbc.types import ScaleFrom, Slide


@dataclass(frozen=True, slots=True)
class IngestedField:
    """What reading a field told: its stamp and digest ("" where it could not be read), scale, or why it failed."""

    stamp: FieldStamp
    sha256: str
    um_per_px: float | None
    failure: str | None
    decode_seconds: float
    store_seconds: float


@dataclass(frozen=True, slots=True)
class Ingested:
    """A slide whose fields are in its Zarr group, ready to count; or, `done`, one whose count stands already."""

    slide: Slide
    fields: tuple[IngestedField, ...]
    count_id: str
    done: bool
    seconds: float

    @property
    def readable(self) -> tuple[int, ...]:
        """Indices of the fields whose pixels are stored."""
        return tuple(i for i, field in enumerate(self.fields) if field.failure is None)

    @property
    def failed(self) -> tuple[FailedField, ...]:
        """The fields that could not be read."""
        return tuple(FailedField(f.stamp.name, f.failure) for f in self.fields if f.failure is not None)


@dataclass(frozen=True, slots=True, eq=False)
class CountedChunk:
    """Cells of some fields, row by row: field index (N,), box (N,4) in field px, cell type, both scores (N,)."""

    fields: NDArray[np.int64]
    boxes: NDArray[np.float32]
    cell_types: tuple[str, ...]
    scores: NDArray[np.float32]
    type_scores: NDArray[np.float32]
    detect_seconds: float = 0.0
    classify_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> "CountedChunk":
        """No cells."""
        none = np.zeros(0, np.float32)
        return CountedChunk(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), (), none, none)

    @staticmethod
    def seconds(detect: float, classify: float) -> "CountedChunk":
        """No cells, and the time that it took to find them."""
        return replace(CountedChunk.empty(), detect_seconds=detect, classify_seconds=classify)

    @staticmethod
    def concatenate(parts: "list[CountedChunk]") -> "CountedChunk":
        """The cells of all parts, in order; their seconds add up."""
        whole = [CountedChunk.empty(), *parts]
        return CountedChunk(
            np.concatenate([c.fields for c in whole]),
            np.concatenate([c.boxes for c in whole]),
            tuple(cell_type for c in whole for cell_type in c.cell_types),
            np.concatenate([c.scores for c in whole]),
            np.concatenate([c.type_scores for c in whole]),
            sum(c.detect_seconds for c in whole),
            sum(c.classify_seconds for c in whole),
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """A slide's µm per px and where it came from; both None where nothing told it."""

    um_per_px: float | None
    source: ScaleFrom | None


@dataclass(frozen=True, slots=True, eq=False)
class CountedSlide:
    """All that counting found of a slide, ready to commit; `began` is when stage 2 did, on the monotonic clock."""

    ingested: Ingested
    scale: Scale
    cells: CountedChunk
    began: float


@dataclass(frozen=True, slots=True)
class SlideFailure:
    """A slide that could not be counted as a whole, and why."""

    slide: Slide
    reason: str


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """What became of a slide: counted now, unchanged since it was counted, or failed as a whole for `reason`."""

    slide_id: str
    status: Literal["counted", "unchanged", "failed"]
    n_fields: int
    n_cells: int
    failed_fields: tuple[FailedField, ...]
    seconds: float
    reason: str = ""
