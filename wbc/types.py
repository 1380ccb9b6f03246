"""The frozen values that flow through a count: slides, keys of work, tiles, detections, differentials."""

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from upath import UPath

T = TypeVar("T")
# Number formats of a processor and of a GPU, which sums in another order: cells near the threshold come or go.
Precision = Literal["float32", "bfloat16", "float32 on cuda", "bfloat16 on cuda", "mixed"]
ScaleFrom = Literal["given", "metadata", "red_cells"]


UM_PER_PX_RANGE = (0.02, 2.0)
# Data sets are scaled by the median of all their labelled red cells, of which a tenth are cut by an edge. Where whole
# ones are measured, the sure ones above all, they are 5.3 % larger on six slides of two scanners (4.1 to 6.6 %).
WHOLE_RED_CELL_UM = 7.58


def is_likely_scale(um_per_px: float) -> bool:
    """Whether cells can be told apart at this scale: between an electron microscope and a magnifying glass."""
    return UM_PER_PX_RANGE[0] <= um_per_px <= UM_PER_PX_RANGE[1]


class FieldError(Exception):
    """What a user's file did: the field cannot be counted. `reason` is one line for the tables and the terminal."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, " ".join(reason.split())

    def __reduce__(self) -> tuple[type["FieldError"], tuple[str, str]]:
        return FieldError, (self.name, self.reason)


class FieldPaths(Sequence[UPath]):
    """The files in `folder` with these names, in order, each made a path when it is asked for.

    A path takes half a kilobyte, and a run may have a million fields: names are kept compressed, as those of a folder
    mostly differ in a number. `is_part` says that the folder held others, too: a slice is a part.
    """

    __slots__ = ("_n", "_packed", "folder", "is_part")

    def __init__(self, folder: UPath, names: Iterable[str], *, is_part: bool = False) -> None:
        listed = tuple(names)
        joined = "/".join(listed)  # which no name holds
        self.folder, self.is_part, self._n = folder, is_part, len(listed)
        self._packed = zlib.compress(joined.encode("utf-8", "surrogatepass"), zlib.Z_BEST_SPEED)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files."""
        joined = zlib.decompress(self._packed).decode("utf-8", "surrogatepass")
        return tuple(joined.split("/")) if self._n else ()

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[UPath]:
        return (self.folder / name for name in self.names)

    @overload
    def __getitem__(self, index: int) -> UPath: ...
    @overload
    def __getitem__(self, index: slice) -> "FieldPaths": ...
    def __getitem__(self, index: int | slice) -> "UPath | FieldPaths":
        found = self.names[index]
        return self.folder / found if isinstance(found, str) else FieldPaths(self.folder, found, is_part=True)

    def __eq__(self, other: object) -> bool:
        # By names: another machine's zlib may pack the same ones otherwise.
        return isinstance(other, FieldPaths) and (self.folder, self.names) == (other.folder, other.names)

    def __hash__(self) -> int:
        return hash((self.folder, self.names))


@dataclass(frozen=True, slots=True)
class Slide:
    """A folder of fields. `field_paths` are sorted by name; `um_per_px` is set where the user gave the scale.

    A folder that ought to be a slide and holds no image has no `field_paths`. `source` is the folder's address, by
    which OUT knows a slide from another with its `slide_id`; None where it is not known.
    """

    slide_id: str
    field_paths: Sequence[UPath]
    um_per_px: float | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        names = list(self.field_names)
        if not self.slide_id or "/" in self.slide_id or self.slide_id.startswith("."):
            raise ValueError(f"slide_id {self.slide_id!r} is no safe file name")
        if names != sorted(set(names)):
            raise ValueError(f"{self.slide_id}: field names are not sorted and distinct")
        if self.um_per_px is not None and not is_likely_scale(self.um_per_px):
            low, high = UM_PER_PX_RANGE
            raise ValueError(f"{self.slide_id}: um_per_px is {self.um_per_px}, not between {low} and {high:g}")

    @property
    def folder(self) -> UPath:
        """Where its fields lie. Raises IndexError of a slide without fields."""
        paths = self.field_paths
        return paths.folder if isinstance(paths, FieldPaths) else paths[0].parent

    @property
    def field_names(self) -> tuple[str, ...]:
        """The fields' file names, in their order."""
        paths = self.field_paths
        return paths.names if isinstance(paths, FieldPaths) else tuple(path.name for path in paths)


@dataclass(frozen=True, order=True)
class FieldKey:
    """The address of one field: slide and index into its `field_paths`."""

    slide_id: str
    field: int

    def __post_init__(self) -> None:
        if self.field < 0:
            raise ValueError(f"field index {self.field} is negative")


@dataclass(frozen=True, slots=True, order=True)
class ChunkKey:
    """The address of some of a slide's fields: rising indices into its `field_paths`."""

    slide_id: str
    indices: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.indices or self.indices[0] < 0 or any(a >= b for a, b in pairwise(self.indices)):
            raise ValueError(f"chunk {self.indices} of {self.slide_id} is empty, or its indices do not rise from 0 on")

    def fields(self) -> list[FieldKey]:
        """The chunk's fields, in order."""
        return [FieldKey(self.slide_id, i) for i in self.indices]

    def cut(self, size: int) -> "list[ChunkKey]":
        """The chunk in even parts of at most `size` fields, in order."""
        return [ChunkKey(self.slide_id, part) for part in cut(self.indices, size)]


def cut(items: tuple[T, ...], size: int) -> list[tuple[T, ...]]:
    """The items in order, in as few parts of at most `size` as can be, of even lengths, the longer ones first."""
    n = math.ceil(len(items) / size)
    starts = [math.ceil(len(items) * k / n) for k in range(n)]
    return [items[start:end] for start, end in zip(starts, [*starts[1:], len(items)], strict=True)]


@dataclass(frozen=True, slots=True, order=True)
class Tile:
    """A rectangle of a picture, in pixels of the picture that it is cut from; holds no pixels itself."""

    y: int
    x: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.y < 0 or self.x < 0 or self.height <= 0 or self.width <= 0:
            raise ValueError(f"no such tile: {asdict(self)}")


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The cells of one picture: `boxes` float32 (N,4) x0,y0,x1,y1 in pixels of the picture they came from.

    `shifted` and `scaled` alone carry them over to another picture. `scores` are float32 (N,); `labels` int64 (N,)
    index the detector's classes from 1, as torchvision's do.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(f"shapes {self.boxes.shape}, {self.scores.shape}, {self.labels.shape} do not agree")
        expected = np.dtype(np.float32), np.dtype(np.float32), np.dtype(np.int64)
        if (self.boxes.dtype, self.scores.dtype, self.labels.dtype) != expected:
            raise ValueError(f"dtypes {self.boxes.dtype}, {self.scores.dtype}, {self.labels.dtype}")

    def __len__(self) -> int:
        return len(self.scores)

    @staticmethod
    def empty() -> "Detections":
        """No boxes."""
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    @staticmethod
    def concatenate(parts: "list[Detections]") -> "Detections":
        """The boxes of all parts, in order."""
        whole = [Detections.empty(), *parts]
        return Detections(
            np.concatenate([d.boxes for d in whole]),
            np.concatenate([d.scores for d in whole]),
            np.concatenate([d.labels for d in whole]),
        )

    def take(self, which: NDArray[Any]) -> "Detections":
        """The boxes at `which` (a mask or indices)."""
        return Detections(self.boxes[which], self.scores[which], self.labels[which])

    def shifted(self, dx: float, dy: float) -> "Detections":
        """The same cells in the picture that this one was cut from, at `dx`, `dy` px."""
        return replace(self, boxes=self.boxes + np.array([dx, dy] * 2, np.float32))

    def scaled(self, fx: float, fy: float, height: int, width: int) -> "Detections":
        """The same cells in this picture, `fx` times as wide and `fy` times as high, clipped to (`height`, `width`)."""
        sides = np.array([width, height] * 2, np.float32)
        return replace(self, boxes=np.clip(self.boxes * np.array([fx, fy] * 2, np.float32), 0, sides))


# The probability below which a cell is not given a name: one for all names, or one for each that is given at all.
Threshold = float | dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class CellNames:
    """What each of N cells is called: its type, and the type that comes second, with their probabilities float32.

    A probability is NaN, and a second type None, where no classifier ran or no other type is left.
    """

    types: NDArray[np.object_]
    scores: NDArray[np.float32]
    second_types: NDArray[np.object_]
    second_scores: NDArray[np.float32]

    @staticmethod
    def of_types(types: "NDArray[np.object_]") -> "CellNames":
        """Cells whose types no classifier told."""
        unknown = np.full(len(types), np.nan, np.float32)
        return CellNames(types, unknown, np.full(len(types), None, object), unknown.copy())


@dataclass(frozen=True, slots=True)
class DifferentialRow:
    """One cell type of a slide: its count and, where it is in the denominator, percent with 95 % limits (else None).

    `count` is None where the type was not looked for, or no cell could have been called so; there is then no percent
    either. `percent_corrected`, with limits `low` and `high`, is what is left of `percent` once misnaming is undone;
    None where it was not measured.
    """

    cell_type: str
    lineage: str
    count: int | None
    in_differential: bool
    percent: float | None
    ci_low: float | None
    ci_high: float | None
    percent_corrected: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Differential:
    """A slide's counts and all that is derived from them; `me_high` is infinite where no erythroblast was seen."""

    taxonomy: str
    rows: tuple[DifferentialRow, ...]
    n_cells: int
    n_differential: int
    n_unidentified: int
    me_ratio: float | None
    me_low: float | None
    me_high: float | None
    nrbc_per_100_wbc: float | None
    flags: tuple[str, ...]
