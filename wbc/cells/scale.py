"""The scale of fields from their red cells, which are of one size wherever they were photographed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wbc.cells.detect import rescale, run_tiles
from wbc.cells.geometry import RED_CELL_UM, box_area, whole_in_tile
from wbc.cells.tiles import TileSettings
from wbc.models.registry import LoadedModel
from wbc.types import WHOLE_RED_CELL_UM, Detections, Tile, is_likely_scale

LADDER_PX = tuple(14 * 1.35**k for k in range(10))  # red cells from 14 to 208 px
LOOK_PX = 448
ENOUGH_CELLS = 12  # to measure a scale by
ENOUGH_TO_CHECK = 6  # to see whether one is about right
ALIKE = 1.25  # how far apart their middle half may lie
MAGNIFIED = 1.3
MIN_SCORE = 0.5


def estimate_um_per_px(fields: Sequence[NDArray[np.uint8]], model: LoadedModel) -> float | None:
    """The scale that fields uint8 (H,W,3) share: the median over fields; None where they do not show enough red cells.

    A ladder of scales is tried, and the rung kept at which red cells of the size that the detector knows cover most of
    the picture; closer looks then measure them. One ladder serves them all, unless the first field is too empty. Where
    no field has enough by itself, those of all are enough, if they are as much of one size as red cells are.
    """
    if "rbc" not in model.card.classes:
        return None
    sizes: list[float] = []
    few: list[tuple[NDArray[np.uint8], RedCells]] = []
    for pixels in fields:
        guess_px = float(np.median(sizes)) if sizes else _climb(pixels, model)
        if not guess_px:
            continue
        seen = _measure(pixels, guess_px, model)
        if len(seen) < ENOUGH_CELLS:
            few.append((pixels, seen))
            continue
        if not sizes:  # the ladder's guess was a rough one
            closer = _measure(pixels, seen.typical, model)
            seen = closer if len(closer) >= ENOUGH_CELLS else seen
        sizes.append(seen.typical)
    if not sizes and len(together := RedCells.concatenate([seen for _, seen in few])) >= ENOUGH_CELLS:
        closer = RedCells.concatenate([_measure(pixels, together.typical, model) for pixels, _ in few])
        sizes = [closer.typical] if len(closer) >= ENOUGH_CELLS and closer.are_alike else []
    um_per_px = WHOLE_RED_CELL_UM / float(np.median(sizes)) if sizes else 0.0
    return um_per_px if is_likely_scale(um_per_px) else None


def red_cell_um(cells: Detections, shape: tuple[int, ...], um_per_px: float, model: LoadedModel) -> float | None:
    """The side of a typical whole red cell among the cells of a field of `shape` (H,W,...), in µm at its scale.

    About `WHOLE_RED_CELL_UM` where the scale is right. None where the field shows too few, or was shown to the detector
    magnified: far too much so, and the grain of cells is found as cells.
    """
    if "rbc" not in model.card.classes or um_per_px > MAGNIFIED * model.card.um_per_px:
        return None
    seen = _red_cells(cells.take(cells.scores >= MIN_SCORE), shape, model)
    return None if len(seen) < ENOUGH_TO_CHECK else seen.typical * um_per_px


def red_cell_um_of(pixels: NDArray[np.uint8], um_per_px: float, model: LoadedModel) -> float | None:
    """The same of a field uint8 (H,W,3), by a look at its middle: at its scale or, where that tells nothing, at all."""
    if "rbc" not in model.card.classes:
        return None
    if um_per_px <= MAGNIFIED * model.card.um_per_px:
        seen = _measure(pixels, RED_CELL_UM / um_per_px, model)
        if len(seen) >= ENOUGH_TO_CHECK:
            return seen.typical * um_per_px
    estimate = estimate_um_per_px([pixels], model)
    return None if estimate is None else WHOLE_RED_CELL_UM * um_per_px / estimate


@dataclass(frozen=True, slots=True, eq=False)
class RedCells:
    """Sides in px, geometric means of height and width, and scores of whole red cells, float32 (N,) each."""

    sides: NDArray[np.float32]
    scores: NDArray[np.float32]

    @staticmethod
    def concatenate(parts: "Sequence[RedCells]") -> "RedCells":
        """The cells of all parts."""
        none = np.zeros(0, np.float32)
        sides, scores = ([none, *(getattr(part, name) for part in parts)] for name in ("sides", "scores"))
        return RedCells(np.concatenate(sides), np.concatenate(scores))

    def __len__(self) -> int:
        return len(self.sides)

    def between(self, low: float, high: float) -> "RedCells":
        """Those of such sides."""
        fitting = (self.sides > low) & (self.sides < high)
        return RedCells(self.sides[fitting], self.scores[fitting])

    @property
    def typical(self) -> float:
        """The median side, weighted by the eighth power of the score.

        A detector half sure of a red cell sees pieces of cells in heaps: without weights their number, and with it the
        scale, hangs on what a score of 0.5 means to one detector or another.
        """
        return self._quantile(0.5)

    @property
    def are_alike(self) -> bool:
        """Whether they are as much of one size as red cells are, and debris is not: its middle half is."""
        return self._quantile(0.75) <= ALIKE * self._quantile(0.25)

    def _quantile(self, part: float) -> float:
        weights = self.scores.astype(np.float64) ** 8
        return float(np.quantile(self.sides, part, weights=weights, method="inverted_cdf"))


def _climb(pixels: NDArray[np.uint8], model: LoadedModel) -> float:
    """A first guess of the red cells' size in a field, in px; 0 where no rung shows any."""
    known_px = RED_CELL_UM / model.card.um_per_px
    best_px, best_cover = 0.0, 0.0
    for guess_px in LADDER_PX:
        seen, area = _look(pixels, known_px / guess_px, LOOK_PX, model)
        fitting = seen.between(0.7 * known_px, 1.4 * known_px)
        cover = float((fitting.sides**2).sum() / area)
        if cover > best_cover:
            best_px, best_cover = guess_px * fitting.typical / known_px, cover
    return best_px


def _measure(pixels: NDArray[np.uint8], guess_px: float, model: LoadedModel) -> RedCells:
    """The red cells of a field, seen where they have about the size that the detector knows, in the field's px."""
    known_px = RED_CELL_UM / model.card.um_per_px
    seen, _ = _look(pixels, known_px / guess_px, TileSettings().tile_px, model)
    fitting = seen.between(0.5 * known_px, 2 * known_px)
    return RedCells(fitting.sides * np.float32(guess_px / known_px), fitting.scores)


def _look(pixels: NDArray[np.uint8], factor: float, side_px: int, model: LoadedModel) -> tuple[RedCells, float]:
    """The whole red cells in the middle of a field seen at `factor`, in px of that, and the area seen."""
    h, w = pixels.shape[:2]
    reach = side_px / factor / 2
    y0, y1 = max(0, round(h / 2 - reach)), min(h, round(h / 2 + reach))
    x0, x1 = max(0, round(w / 2 - reach)), min(w, round(w / 2 + reach))
    view = rescale(pixels[y0:y1, x0:x1], factor)
    height, width = view.shape[:2]
    if min(height, width) < 32:
        return RedCells.concatenate([]), 1.0
    return _red_cells(run_tiles([view], model, MIN_SCORE)[0], view.shape, model), float(height * width)


def _red_cells(cells: Detections, shape: tuple[int, ...], model: LoadedModel) -> RedCells:
    """The red cells that lie whole in a picture of `shape` (H,W,...)."""
    height, width = shape[:2]
    inside = whole_in_tile(cells.boxes, Tile(1, 1, height - 2, width - 2), height, width, 2.0)
    red = cells.take(inside & (cells.labels == model.card.classes.index("rbc") + 1))
    return RedCells(np.sqrt(box_area(red.boxes)), red.scores)
