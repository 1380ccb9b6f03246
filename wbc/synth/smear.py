"""Rendered smears with exact truth: slides for demonstrations and tests, at any scale of load."""

import json
import math
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from upath import UPath

from wbc.cells.geometry import RED_CELL_UM
from wbc.datasets.coco import coco_truth
from wbc.datasets.labels import LabelledPicture
from wbc.storage.atomic import write_whole
from wbc.synth.cells import DrawnCell, draw_platelet, draw_red_cell, draw_white_cell
from wbc.synth.kinds import RECIPES

JPEG_QUALITY = 92
MIN_VISIBLE = 0.35
SHARPENING, SHARPENING_PX = 0.5, 2.0
NORMAL_BLOOD = (
    ("segmented_neutrophil", 0.55),
    ("band_neutrophil", 0.045),
    ("lymphocyte", 0.28),
    ("monocyte", 0.065),
    ("eosinophil", 0.03),
    ("basophil", 0.01),
    ("metamyelocyte", 0.005),
    ("myelocyte", 0.004),
    ("promyelocyte", 0.003),
    ("erythroblast", 0.008),
)


@dataclass(frozen=True, slots=True)
class SmearSettings:
    """What a rendered field holds: `height_px` × `width_px` at `um_per_px` µm per pixel, and how many cells.

    Counts are ranges, both ends included, drawn anew for each field; as many are laid as find room. `proportions` are
    the kinds of white cells with their weights, of any sum (default: an adult's normal blood and a few immature cells).
    Raises ValueError for a size, range, kind or weight that cannot be.
    """

    height_px: int = 1920
    width_px: int = 2560
    um_per_px: float = 0.1
    white_cells_per_field: tuple[int, int] = (8, 14)
    platelets_per_field: tuple[int, int] = (10, 30)
    red_cells_per_mm2: tuple[float, float] = (6_500.0, 14_000.0)
    proportions: tuple[tuple[str, float], ...] = NORMAL_BLOOD

    def __post_init__(self) -> None:
        if min(self.height_px, self.width_px) < 1 or not (math.isfinite(self.um_per_px) and self.um_per_px > 0):
            raise ValueError(f"no field of {self.height_px}×{self.width_px} px at {self.um_per_px} µm/px")
        for low, high in (self.white_cells_per_field, self.platelets_per_field, self.red_cells_per_mm2):
            if not 0 <= low <= high:
                raise ValueError(f"no range of counts: {low} to {high}")
        if unknown := [kind for kind, _ in self.proportions if kind not in RECIPES]:
            raise ValueError(f"kinds {unknown} are none of {sorted(RECIPES)}")
        weights = [weight for _, weight in self.proportions]
        if not weights or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"weights {weights} are no proportions")


@dataclass(frozen=True, slots=True)
class Stain:
    """How a slide was stained and lit, per channel R, G, B: light without a cell in 0..255, factors on the dyes."""

    light: tuple[float, float, float] = (254.0, 228.0, 202.0)
    dye: tuple[float, float, float] = (1.0, 1.0, 1.0)
    red_cells: tuple[float, float, float] = (1.0, 1.0, 1.0)


def draw_stain(rng: np.random.Generator) -> Stain:
    """The stain and light of one slide, around those of a well stained smear in warm light."""
    neutral = rng.beta(1.0, 3.0)
    light = (1 - neutral) * np.array([254, 228, 202]) + neutral * np.array([242, 236, 232]) + rng.normal(0, 2, 3)
    dye = rng.normal(1.0, 0.05) * rng.normal(1.0, 0.03, 3)
    red = rng.normal(1.0, 0.07) * rng.normal(1.0, 0.04, 3)
    (r, g, b), (dr, dg, db), (cr, cg, cb) = np.minimum(light, 254).tolist(), dye.tolist(), red.tolist()
    return Stain((r, g, b), (dr, dg, db), (cr, cg, cb))


@dataclass(slots=True, eq=False)
class _Layer:
    """A field under way: its optical density, and where cells lie, all in field pixels."""

    density: NDArray[np.float32]
    centres: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 2)))
    radii: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def find_room(
        self, radius: float, nearness: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float64] | None:
        """A place (y, x) for a cell no nearer to each laid one than `nearness` sums of radii; None if 40 tries fail."""
        size = np.array(self.density.shape[:2], np.float64)
        tries = rng.uniform(-0.4 * radius, size + 0.4 * radius, (40, 2))
        apart = np.hypot(*(tries[:, None] - self.centres[None]).transpose(2, 0, 1))
        free = (apart >= nearness * (radius + self.radii)).all(1)
        return np.asarray(tries[free.argmax()]) if free.any() else None

    def lay(self, cell: DrawnCell, centre: NDArray[np.float64], dye: NDArray[np.float32]) -> None:
        """Add a cell's density and its box, unless less than MIN_VISIBLE of it would be in the field."""
        height, width = self.density.shape[:2]
        size = len(cell.mask)
        y, x = (round(c) - size // 2 for c in centre)
        y0, x0, y1, x1 = max(-y, 0), max(-x, 0), min(height - y, size), min(width - x, size)
        if y1 <= y0 or x1 <= x0:
            return
        visible = cell.mask[y0:y1, x0:x1]
        if visible.sum() < max(MIN_VISIBLE * cell.mask.sum(), 1):
            return
        self.density[y + y0 : y + y1, x + x0 : x + x1] += cell.density[y0:y1, x0:x1] * dye
        rows, columns = np.flatnonzero(visible.any(1)) + y + y0, np.flatnonzero(visible.any(0)) + x + x0
        self.boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
        self.labels.append(cell.kind)
        self.centres = np.concatenate([self.centres, centre[None]])
        self.radii = np.append(self.radii, cell.radius_px)


def render_field(
    settings: SmearSettings, rng: np.random.Generator, stain: Stain | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32], tuple[str, ...]]:
    """One field of a smear and its truth: pixels uint8 (H,W,3) RGB, boxes float32 (N,4), N labels.

    Boxes are x0,y0,x1,y1 in field pixels, the exact extents of each cell's drawn shape clipped to the field; a cell
    with less than 35 % inside is not drawn at all. Labels are `rbc`, `platelet` and kinds of `settings.proportions`.
    """
    stain = Stain() if stain is None else stain
    layer = _Layer(np.zeros((settings.height_px, settings.width_px, 3), np.float32))
    dye = np.asarray(stain.dye, np.float32)
    scale = settings.um_per_px
    kinds = [kind for kind, _ in settings.proportions]
    weights = np.array([weight for _, weight in settings.proportions])
    for _ in range(rng.integers(*settings.white_cells_per_field, endpoint=True)):
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        _scatter(layer, draw_white_cell(kind, scale, rng), dye, rng)
    for _ in range(rng.integers(*settings.platelets_per_field, endpoint=True)):
        _scatter(layer, draw_platelet(scale, rng), dye, rng)
    _lay_red_cells(layer, settings, np.asarray(stain.red_cells, np.float32), rng)
    _lay_specks(layer.density, scale, rng)
    boxes = np.array(layer.boxes, np.float32).reshape(-1, 4)
    return _photograph(layer.density, stain, scale, rng), boxes, tuple(layer.labels)


def _scatter(layer: _Layer, cell: DrawnCell, dye: NDArray[np.float32], rng: np.random.Generator) -> None:
    centre = layer.find_room(cell.radius_px, np.full(len(layer.radii), 1.1), rng)
    if centre is not None:
        layer.lay(cell, centre, dye)


def _lay_red_cells(layer: _Layer, settings: SmearSettings, dye: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Red cells of one field: of one size and shade but for some spread, most apart, one in five on another."""
    area_mm2 = settings.height_px * settings.width_px * settings.um_per_px**2 / 1e6
    others = len(layer.radii)
    for _ in range(rng.poisson(rng.uniform(*settings.red_cells_per_mm2) * area_mm2)):
        radius_um = RED_CELL_UM / 2 * float(np.clip(rng.normal(1.0, 0.07), 0.75, 1.25))
        nearness = np.full(len(layer.radii), rng.uniform(0.6, 0.95) if rng.random() < 0.22 else 1.0)
        nearness[:others] = 0.95
        centre = layer.find_room(radius_um / settings.um_per_px, nearness, rng)
        if centre is not None:
            layer.lay(draw_red_cell(radius_um, settings.um_per_px, rng), centre, dye)


def _lay_specks(density: NDArray[np.float32], um_per_px: float, rng: np.random.Generator) -> None:
    """Precipitate of the stain: dark specks well under a platelet's size."""
    height, width = density.shape[:2]
    for _ in range(rng.poisson(120 * height * width * um_per_px**2 / 1e6)):
        radius = rng.uniform(0.15, 0.4) / um_per_px
        y, x = rng.integers(height), rng.integers(width)
        reach = math.ceil(2 * radius)
        top, left = max(y - reach, 0), max(x - reach, 0)
        patch = density[top : y + reach + 1, left : x + reach + 1]
        rows, columns = np.ogrid[top : top + patch.shape[0], left : left + patch.shape[1]]
        spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / radius**2)[..., None]
        patch += (spot * np.array([0.8, 1.2, 0.35]) * rng.uniform(0.3, 1.0)).astype(np.float32)


def _photograph(
    density: NDArray[np.float32], stain: Stain, um_per_px: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Pixels uint8 (H,W,3) of a density (H,W,3): Beer-Lambert, uneven light, focus, the sensor's noise."""
    height, width = density.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(rng.uniform(-0.5, 0.5))
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None] - np.float32(rng.uniform(-0.5, 0.5))
    light = 1 - np.float32(rng.uniform(0.0, 0.025)) * (rows**2 + columns**2)
    focus_px = rng.uniform(0.05, 0.1) / um_per_px
    pixels = np.exp(-density)
    noise = rng.standard_normal(density.shape, np.float32)
    for channel, level in enumerate(stain.light):
        image = gaussian_filter(pixels[..., channel], focus_px)
        image += SHARPENING * (image - gaussian_filter(image, SHARPENING_PX))
        pixels[..., channel] = image * (light * np.float32(level)) + noise[..., channel]
    return np.asarray(np.clip(np.rint(pixels), 0, 255), np.uint8)


def render_slides(out: Path, slides: int, fields: int, seed: int, settings: SmearSettings = SmearSettings()) -> Path:
    """Write slides `out/slide-01/field-01.jpg` … and their truth; returns the truth's path, `out/truth_coco.json`.

    The same seed gives the same bytes, and asking for more slides or fields leaves the others unchanged. Each file
    is written beside its place and renamed, the truth last. Raises ValueError where `slides` or `fields` is below 1.
    """
    if slides < 1 or fields < 1:
        raise ValueError(f"nothing to render: {slides} slides of {fields} fields")
    pictures = []
    for slide in range(1, slides + 1):
        folder = out / f"slide-{slide:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        stain = draw_stain(np.random.default_rng([seed, slide]))
        for number in range(1, fields + 1):
            pixels, boxes, labels = render_field(settings, np.random.default_rng([seed, slide, number]), stain)
            path = folder / f"field-{number:02d}.jpg"
            jpeg = BytesIO()
            Image.fromarray(pixels).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
            write_whole(UPath(path), jpeg.getvalue())
            name = f"{folder.name}/{path.name}"
            pictures.append((name, settings.width_px, settings.height_px, LabelledPicture(path, boxes, labels)))
    truth = out / "truth_coco.json"
    write_whole(UPath(truth), json.dumps(coco_truth(pictures, ["rbc", "platelet", *RECIPES])).encode())
    return truth
