"""What classifiers learn from: single cells of several data sets, drawn endlessly under random stain and optics."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from wbc.cells.crop import cut_square, even_light
from wbc.cells.hue import adjust_hue
from wbc.datasets.augment import Jitter, jitter_optics, jitter_stain, take_stain
from wbc.datasets.crops import (
    PATCH_PX,
    PATCH_UM,
    Crops,
    TableForm,
    cut_crops,
    cut_named_cells,
    read_cell_boxes,
    read_cell_pictures,
    read_crop_table,
)
from wbc.datasets.labels import red_cell_um_per_px
from wbc.datasets.steady import arrays_digest, steady
from wbc.synth.crops import render_debris
from wbc.taxonomy import UNIDENTIFIED, load_taxonomy
from wbc.training.detector_data import BoxData, StoreData, of_one_scale, read_boxes


@dataclass(frozen=True, slots=True)
class CropTable:
    """Single cells in a Parquet `table` below the data folder: its `splits` to read, and kinds and files to leave out.

    `names` maps kinds to the cell types that they are, where the table calls them otherwise; they are in its column
    `kind_column`. `weight` is how often they are drawn, beside the others; `set` what figures measured on them are
    called. `patch_um` is the side of what is read of each picture, about its middle, or, with `find_cell`, about the
    one white cell that it shows anywhere.
    """

    table: str
    splits: tuple[str, ...]
    um_per_px: float
    format: Literal["crops"] = "crops"
    kind_column: str = "kind"
    patch_um: float = PATCH_UM
    find_cell: bool = False
    leave_out: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0
    set: str = ""


@dataclass(frozen=True, slots=True)
class CutCells(BoxData):
    """White cells cut from labelled pictures that show one each: `kinds` is a CSV of `image` (a stem) and `subtypes`.

    A picture with several subtypes, divided by ";", or with none, is passed over: its kind is not sure.
    """

    kinds: str = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class CellPictures:
    """Pictures of one cell each in the folder `images`; `kinds` is a CSV of `image` (a stem) and `label`."""

    images: str
    kinds: str
    um_per_px: float
    format: Literal["pictures"] = "pictures"
    weight: float = 1.0
    set: str = ""


@dataclass(frozen=True, slots=True)
class CellBoxes:
    """White cells of the fields in `images`; `cells` is a CSV of `field` (a file name), `kind`, `x0 y0 x1 y1`."""

    images: str
    cells: str
    um_per_px: float
    format: Literal["boxes"] = "boxes"
    weight: float = 1.0
    set: str = ""


@dataclass(frozen=True, slots=True)
class RenderedDebris:
    """So many `crops` of rendered debris and giant platelets, which are `not_a_white_cell` (`wbc.synth.crops`)."""

    crops: int
    seed: int
    format: Literal["debris"] = "debris"
    weight: float = 1.0
    set: str = ""


# How a kind is drawn: by the root of its number of cells, or as often as every other.
Sampler = Literal["root", "balanced"]
CropData = Annotated[
    CropTable | CutCells | CellPictures | CellBoxes | StoreData | RenderedDebris, Field(discriminator="format")
]


def read_crops(spec: CropData, data: Path) -> Crops:
    """Single cells of one data set below `data`.

    Raises ValueError as its reader does, and where it changes while it is read.
    """
    with steady(*(data / place for place in _places(spec))):
        return _read_format(spec, data)


def _places(spec: CropData) -> tuple[str, ...]:
    """The files and folders of a data set."""
    match spec:
        case CropTable():
            return (spec.table,)
        case CellPictures():
            return spec.images, spec.kinds
        case CellBoxes():
            return spec.images, spec.cells
        case StoreData() | RenderedDebris():
            return ()  # nothing of these ever changes
    return spec.images, spec.annotations, spec.kinds


def _read_format(spec: CropData, data: Path) -> Crops:
    match spec:
        case CropTable():
            form = TableForm(spec.um_per_px, spec.kind_column, spec.leave_out, spec.patch_um, spec.find_cell)
            parts = [read_crop_table(data / spec.table, split, form) for split in spec.splits]
            crops = _joined(parts)
            return replace(crops, labels=tuple(spec.names.get(label, label) for label in crops.labels))
        case CellPictures():
            return read_cell_pictures(data / spec.images, data / spec.kinds, spec.um_per_px)
        case CellBoxes():
            return read_cell_boxes(data / spec.images, data / spec.cells, spec.um_per_px)
        case StoreData():
            return _stored_cells(spec, data)
        case RenderedDebris():
            return render_debris(spec.crops, spec.seed)
    return _cut_cells(spec, data)


def _joined(parts: list[Crops]) -> Crops:
    """Parts of one side as one."""
    names, labels = tuple(name for c in parts for name in c.names), tuple(label for c in parts for label in c.labels)
    sources = tuple(source for c in parts for source in c.sources)
    return Crops(np.concatenate([c.pixels for c in parts]), labels, names, parts[0].patch_um, sources)


def _stored_cells(spec: StoreData, data: Path) -> Crops:
    """The nucleated cells of a store that have a kind: one that is called `wbc`, or unidentified, has none."""
    taxonomy, pictures = load_taxonomy(spec.taxonomy), spec.read(data)

    def is_named(label: str) -> bool:
        return taxonomy.cell_type(label).nucleated and taxonomy.resolve(label) != UNIDENTIFIED

    scaled = of_one_scale(pictures, spec.um_per_px)
    parts = [cut_named_cells(alike, is_named, scale) for scale, alike in scaled.items()]
    crops = _joined(parts)
    if not crops.labels:
        raise ValueError(f"{spec.store}: no white cell with a kind in this annotation store")
    return crops


def _cut_cells(spec: CutCells, data: Path) -> Crops:
    kinds = pd.read_csv(data / spec.kinds).dropna().set_index("image")["subtypes"]
    sure = {str(stem): str(kind) for stem, kind in kinds.items() if ";" not in kind}
    pictures = read_boxes(spec, data)
    return cut_crops(pictures, sure, spec.um_per_px or red_cell_um_per_px(pictures))


@dataclass(frozen=True, slots=True)
class CropSettings:
    """A classifier's window: `input_px` a side at `um_per_px`, its light evened or not (`wbc.cells.crop.even_light`),
    its hues spread over the range `hue` (`wbc.cells.hue.adjust_hue`) or not.

    Training moves, turns, shears and scales it this far, and with a chance of `other_stain` takes the stain of a cell
    of another data set. `upright`, it is moved and scaled alone.
    """

    input_px: int = 128
    um_per_px: float = 0.16
    smallest_scale: float = 0.8
    largest_scale: float = 1.25
    shift_um: float = 1.2
    shear: float = 0.12
    upright: bool = False
    even_light: bool = False
    hue: tuple[float, float] | None = None
    other_stain: float = 0.0


class CropSamples(Dataset[tuple[Tensor, int]]):
    """Endless crops: the i-th depends on seed and i alone. Pixels uint8 (3,S,S), and the index of its label's row.

    `parts` are (crops, row of each label, weight): a part is drawn by its weight, a label within it by the root of its
    number of cells, so that three basophils are neither lost nor learnt by heart. With a chance of `crop.other_stain` a
    cell has the stain of any cell of another part, drawn by its weight, wholly or in part: colour alone tells neither
    kind nor laboratory.
    The `balanced` sampler (ASAE-Net 2020, section 3.5) takes the labels in turn, so that a batch that is a multiple of
    them shows each as often, from a part that has it.
    """

    def __init__(
        self,
        parts: list[tuple[Crops, dict[str, int], float]],
        crop: CropSettings,
        jitter: Jitter,
        seed: int,
        sampler: Sampler = "root",
    ) -> None:
        self.crop, self.jitter, self.seed = crop, jitter, seed
        self.parts = [p for p, _, _ in parts]
        self.rows = [[rows[label] for label in p.labels] for p, rows, _ in parts]
        self.of_label = [
            [[i for i, row in enumerate(rows) if row == number] for number in sorted(set(rows))] for rows in self.rows
        ]
        self.chance = [_fractions([np.sqrt(len(group)) for group in groups]) for groups in self.of_label]
        self.weights = _fractions([weight for _, _, weight in parts])
        self.sampler, self.labels = sampler, sorted({row for rows in self.rows for row in rows})
        self.of_row = [
            [[i for i, other in enumerate(rows) if other == row] for rows in self.rows] for row in self.labels
        ]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Sample `index`."""
        part, i, rng = self._drawn(index)
        pixels = random_window(self.parts[part].pixels[i], self.crop, rng, self.parts[part].patch_um)
        if len(self.parts) > 1 and rng.random() < self.crop.other_stain:
            pixels = take_stain(pixels, self._cell_elsewhere(part, rng), rng.uniform(0, 1))
        pixels = jitter_optics(jitter_stain(pixels, self.jitter, rng), self.jitter, rng)
        pixels = even_light(pixels[None])[0] if self.crop.even_light else pixels
        pixels = adjust_hue(pixels[None], self.crop.hue)[0] if self.crop.hue else pixels
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), self.rows[part][i]

    def pictures(self, index: int) -> list[str]:
        """The cell of sample `index`, by its name, where it has one."""
        part, i, _ = self._drawn(index)
        return [self.parts[part].names[i] if self.parts[part].names else f"cell {i + 1} of data set {part + 1}"]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all cells with their labels' rows."""
        return arrays_digest(
            a for part, rows in zip(self.parts, self.rows, strict=True) for a in (part.pixels, np.array(rows))
        )

    def _drawn(self, index: int) -> tuple[int, int, np.random.Generator]:
        """The part of sample `index`, the number of its cell there, and the dice for all that is done to it."""
        rng = np.random.default_rng([self.seed, index])
        if self.sampler == "balanced":
            return self._drawn_among(self.of_row[index % len(self.labels)], rng)
        part = int(rng.choice(len(self.parts), p=self.weights))
        among = self.of_label[part][int(rng.choice(len(self.chance[part]), p=self.chance[part]))]
        return part, among[int(rng.integers(len(among)))], rng

    def _drawn_among(self, among: list[list[int]], rng: np.random.Generator) -> tuple[int, int, np.random.Generator]:
        part = int(
            rng.choice(len(among), p=_fractions([w * bool(a) for w, a in zip(self.weights, among, strict=True)]))
        )
        return part, among[part][int(rng.integers(len(among[part])))], rng

    def _cell_elsewhere(self, part: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        weights = np.where(np.arange(len(self.parts)) == part, 0, self.weights)
        pixels = self.parts[int(rng.choice(len(self.parts), p=weights / weights.sum()))].pixels
        return np.asarray(pixels[int(rng.integers(len(pixels)))])


def _fractions(weights: list[float]) -> NDArray[np.float64]:
    fractions: NDArray[np.float64] = np.array(weights) / np.sum(weights)
    return fractions


def random_window(
    patch: NDArray[np.uint8], crop: CropSettings, rng: np.random.Generator, patch_um: float = PATCH_UM
) -> NDArray[np.uint8]:
    """A window uint8 (S,S,3) of a patch (176,176,3), turned by any angle, mirrored, sheared, scaled and shifted."""
    per_px = crop.um_per_px * PATCH_PX / patch_um
    per_px /= np.exp(rng.uniform(np.log(crop.smallest_scale), np.log(crop.largest_scale)))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    lean = np.array([[rng.choice([-1.0, 1.0]), rng.uniform(-crop.shear, crop.shear)], [0.0, 1.0]])
    matrix = per_px * turn @ lean
    centre = PATCH_PX / 2 + rng.uniform(-1, 1, 2) * crop.shift_um * PATCH_PX / patch_um
    if crop.upright:
        return cut_square(patch, centre[0], centre[1], per_px * crop.input_px, crop.input_px)
    offset = centre - matrix @ np.full(2, crop.input_px / 2)
    return affine(patch, matrix, offset, crop.input_px)


def affine(
    patch: NDArray[np.uint8], matrix: NDArray[np.float64], offset: NDArray[np.float64], out_px: int
) -> NDArray[np.uint8]:
    """The patch seen through out (x, y) -> matrix (x, y) + offset: uint8 (out_px, out_px, 3), mirrored at its edge."""
    edge = PATCH_PX // 4
    wide = np.pad(patch, ((edge, edge), (edge, edge), (0, 0)), mode="reflect")
    (a, b), (d, e) = matrix
    c, f = offset + edge
    window = Image.fromarray(wide).transform(
        (out_px, out_px), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return np.asarray(window)
