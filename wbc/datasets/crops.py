"""Single cells with a kind: from a table of crops, or cut from labelled pictures; one scale for all."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from wbc.cells.crop import cut_square
from wbc.datasets.labels import LabelledPicture, Picture, find_pictures, opened
from wbc.datasets.lone_cell import centred
from wbc.datasets.reading import picture_at

PATCH_UM = 26.0
PATCH_PX = 176


@dataclass(frozen=True, slots=True)
class Crops:
    """Cells in memory: `pixels` uint8 (N,176,176,3), 26 µm a side around the cell's middle; `labels` N cell types.

    A label may be coarse. `names` say where each cell is from, where that is known, and `sources` the slide or field,
    where there may be several cells of one. Pictures that a classifier sees whole may be of another side, `patch_um`.
    """

    pixels: NDArray[np.uint8]
    labels: tuple[str, ...]
    names: tuple[str, ...] = ()
    patch_um: float = PATCH_UM
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.shape != (len(self.labels), PATCH_PX, PATCH_PX, 3):
            raise ValueError(f"{self.pixels.shape} pixels for {len(self.labels)} labels")

    def take(self, which: NDArray[np.int64]) -> "Crops":
        """The cells at some indices."""
        names, sources = (tuple(entries[i] for i in which) if entries else () for entries in (self.names, self.sources))
        return Crops(self.pixels[which], tuple(self.labels[i] for i in which), names, self.patch_um, sources)


@dataclass(frozen=True, slots=True)
class TableForm:
    """How a table of crops is read: its scale, which column names the kind, kinds and files to leave out, the side of
    what is cut from the middle of each picture, and whether its cell is found and brought there first."""

    um_per_px: float
    kind_column: str = "kind"
    leave_out: tuple[str, ...] = ()
    patch_um: float = PATCH_UM
    find_cell: bool = False

    def leaves_out(self, table: pd.DataFrame) -> pd.Series:
        """Which rows of a table are left out, bool."""
        kinds = table[self.kind_column].isin(self.leave_out)
        return kinds | table["file"].isin(self.leave_out) if "file" in table else kinds


def read_crop_table(path: Path, split: str, form: TableForm) -> Crops:
    """Rows of one `split` of a Parquet table with columns split, jpeg (a cell in the middle, or one to be found) and
    one of kinds.

    Raises ValueError where it has no such column, or no row is left.
    """
    table = pd.read_parquet(path)
    if form.kind_column not in table:
        raise ValueError(f"{path}: no column {form.kind_column!r}; the columns are {', '.join(table.columns)}")
    rows = table[(table["split"] == split) & ~form.leaves_out(table)]
    if rows.empty:
        raise ValueError(f"{path}: no crop of split {split!r}")
    patches = []
    for packed in rows["jpeg"]:
        with Image.open(io.BytesIO(packed)) as file:
            pixels = np.asarray(file.convert("RGB"))
        if form.find_cell:
            pixels = centred(pixels, form.um_per_px, form.patch_um)
        h, w = pixels.shape[:2]
        patches.append(cut_square(pixels, w / 2, h / 2, form.patch_um / form.um_per_px, PATCH_PX))
    names = rows["file"] if "file" in rows else rows.index.astype(str)
    labels, sources = tuple(rows[form.kind_column]), tuple(f"{path}: {name}" for name in names)
    return Crops(np.stack(patches), labels, sources, form.patch_um)


def read_cell_pictures(images: Path, kinds: Path, um_per_px: float) -> Crops:
    """Pictures of one cell each, in the middle; `kinds` is a CSV of `image` (a stem) and `label`.

    Raises ValueError where a picture is missing.
    """
    table, pictures = pd.read_csv(kinds, dtype=str), find_pictures(images)
    patches = []
    for stem in table["image"]:
        if stem not in pictures:
            raise ValueError(f"{kinds}: there is no picture {stem} in {images}")
        pixels = _pixels(pictures[stem])
        patches.append(patch(pixels, pixels.shape[1] / 2, pixels.shape[0] / 2, um_per_px))
    return Crops(_stack(patches), tuple(table["label"]), tuple(str(pictures[stem]) for stem in table["image"]))


def read_cell_boxes(images: Path, cells: Path, um_per_px: float) -> Crops:
    """White cells of fields, each in its box; `cells` is a CSV of `field` (a file of `images`), `kind`, `x0 y0 x1 y1`.

    Raises ValueError where a field is missing or a box is not finite.
    """
    table = pd.read_csv(cells)
    sides = table[["x0", "y0", "x1", "y1"]].to_numpy(float)
    if broken := np.flatnonzero(~np.isfinite(sides).all(1)).tolist():
        raise ValueError(f"{cells}: line {broken[0] + 2}: the box is not four finite numbers")
    patches: dict[int, NDArray[np.uint8]] = {}
    for name, rows in table.groupby("field", sort=False).indices.items():
        pixels = _pixels(picture_at(images, str(name), cells))
        for row in rows:
            x0, y0, x1, y1 = sides[row]
            patches[int(row)] = patch(pixels, (x0 + x1) / 2, (y0 + y1) / 2, um_per_px)
    names = tuple(f"{images / str(name)}, line {line} of {cells.name}" for line, name in enumerate(table["field"], 2))
    pixels, kinds = _stack([patches[row] for row in range(len(table))]), tuple(table["kind"].astype(str))
    return Crops(pixels, kinds, names, sources=tuple(str(images / str(name)) for name in table["field"]))


def cut_crops(pictures: list[LabelledPicture], kinds: dict[str, str], um_per_px: float) -> Crops:
    """The white cell of each picture that has exactly one and a sure kind: `kinds` maps file stems to cell types."""
    patches, labels, names, sources = [], [], [], []
    for p in pictures:
        white = [i for i, label in enumerate(p.labels) if label == "wbc"]
        if len(white) != 1 or p.path.stem not in kinds:
            continue
        x0, y0, x1, y1 = p.boxes[white[0]]
        patches.append(patch(_pixels(p.path), (x0 + x1) / 2, (y0 + y1) / 2, um_per_px))
        labels.append(kinds[p.path.stem])
        names.append(str(p.path))
        sources.append(p.source or str(p.path))
    return Crops(_stack(patches), tuple(labels), tuple(names), sources=tuple(sources))


def cut_named_cells(pictures: Sequence[LabelledPicture], is_wanted: Callable[[str], bool], um_per_px: float) -> Crops:
    """Every cell of the pictures whose label is wanted."""
    patches, labels, names, sources = [], [], [], []
    for p in pictures:
        wanted = [i for i, label in enumerate(p.labels) if is_wanted(label)]
        if not wanted:
            continue
        pixels = _pixels(p.path)
        for i in wanted:
            x0, y0, x1, y1 = p.boxes[i]
            patches.append(patch(pixels, (x0 + x1) / 2, (y0 + y1) / 2, um_per_px))
            labels.append(p.labels[i])
            names.append(f"{p.path}, box {i + 1}")
            sources.append(p.source or str(p.path))
    return Crops(_stack(patches), tuple(labels), tuple(names), sources=tuple(sources))


def _pixels(path: Picture) -> NDArray[np.uint8]:
    with opened(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _stack(patches: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(patches) if patches else np.zeros((0, PATCH_PX, PATCH_PX, 3), np.uint8)


def patch(pixels: NDArray[np.uint8], x: float, y: float, um_per_px: float) -> NDArray[np.uint8]:
    """The 26 µm around (x, y) of a picture (H,W,3) at 176 px; what lies outside repeats the picture's edge."""
    return cut_square(pixels, x, y, PATCH_UM / um_per_px, PATCH_PX)
