"""The scale of fields from their red cells, which are of one size wherever they were photographed."""

from collections.abc import Sequence

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
MIN_SCORE = 0.5


def estimate_um_per_px(fields: Sequence[NDArray[np.uint8]], model: LoadedModel) -> float | None:
    """The scale that fields uint8 (H,W,3) share: the median over fields; None where no field has enough red cells.

    A ladder of scales is tried, and the rung kept at which red cells of the size that the detector knows cover most of
    the picture; closer looks then measure them. One ladder serves them all, unless the first field is too empty.
    """
    if "rbc" not in model.card.classes:
        return None
    sizes: list[float] = []
    for pixels in fields:
        guess_px = float(np.median(sizes)) if sizes else _climb(pixels, model)
        measured = _measure(pixels, guess_px, model) if guess_px else None
        if measured is not None:
            sizes.append(measured if sizes else _measure(pixels, measured, model) or measured)
    um_per_px = WHOLE_RED_CELL_UM / float(np.median(sizes)) if sizes else 0.0
    return um_per_px if is_likely_scale(um_per_px) else None


def red_cell_um(cells: Detections, shape: tuple[int, ...], um_per_px: float, model: LoadedModel) -> float | None:
    """The side of a typical whole red cell among the cells of a field of `shape` (H,W,...), in µm at its scale.

    About `WHOLE_RED_CELL_UM` where the scale is right. None where the field shows too few.
    """
    if "rbc" not in model.card.classes:
        return None
    sides, scores = _red_cells(cells.take(cells.scores >= MIN_SCORE), shape, model)
    return None if len(sides) < ENOUGH_TO_CHECK else _typical(sides, scores) * um_per_px


def _climb(pixels: NDArray[np.uint8], model: LoadedModel) -> float:
    """A first guess of the red cells' size in a field, in px; 0 where no rung shows any."""
    known_px = RED_CELL_UM / model.card.um_per_px
    best_px, best_cover = 0.0, 0.0
    for guess_px in LADDER_PX:
        sides, scores, area = _look(pixels, known_px / guess_px, LOOK_PX, model)
        fitting = (sides > 0.7 * known_px) & (sides < 1.4 * known_px)
        cover = float((sides[fitting] ** 2).sum() / area)
        if cover > best_cover:
            best_px, best_cover = guess_px * _typical(sides[fitting], scores[fitting]) / known_px, cover
    return best_px


def _measure(pixels: NDArray[np.uint8], guess_px: float, model: LoadedModel) -> float | None:
    """The typical red cell in px, seen where it has about the size that the detector knows; None for too few."""
    known_px = RED_CELL_UM / model.card.um_per_px
    sides, scores, _ = _look(pixels, known_px / guess_px, TileSettings().tile_px, model)
    fitting = (sides > 0.5 * known_px) & (sides < 2 * known_px)
    if fitting.sum() < ENOUGH_CELLS:
        return None
    return guess_px * _typical(sides[fitting], scores[fitting]) / known_px


def _typical(sides: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """The median side, weighted by the eighth power of the score.

    A detector half sure of a red cell sees pieces of cells in heaps: without weights their number, and with it the
    scale, hangs on what a score of 0.5 means to one detector or another.
    """
    return float(np.quantile(sides, 0.5, weights=scores.astype(np.float64) ** 8, method="inverted_cdf"))


def _look(
    pixels: NDArray[np.uint8], factor: float, side_px: int, model: LoadedModel
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Sides and scores of the whole red cells in the middle of a field seen at `factor`, in px, and the area seen."""
    h, w = pixels.shape[:2]
    reach = side_px / factor / 2
    y0, y1 = max(0, round(h / 2 - reach)), min(h, round(h / 2 + reach))
    x0, x1 = max(0, round(w / 2 - reach)), min(w, round(w / 2 + reach))
    view = rescale(pixels[y0:y1, x0:x1], factor)
    height, width = view.shape[:2]
    if min(height, width) < 32:
        return np.zeros(0, np.float32), np.zeros(0, np.float32), 1.0
    sides, scores = _red_cells(run_tiles([view], model, MIN_SCORE)[0], view.shape, model)
    return sides, scores, float(height * width)


def _red_cells(
    cells: Detections, shape: tuple[int, ...], model: LoadedModel
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Sides and scores of the red cells that lie whole in a picture of `shape` (H,W,...), in its px."""
    height, width = shape[:2]
    inside = whole_in_tile(cells.boxes, Tile(1, 1, height - 2, width - 2), height, width, 2.0)
    red = cells.take(inside & (cells.labels == model.card.classes.index("rbc") + 1))
    return np.sqrt(box_area(red.boxes)), red.scores
