"""How a field is looked at: in tiles that cover it, or in windows over places; and which of them answers for a cell."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wbc.cells.geometry import Boxes, in_core, whole_in_tile
from wbc.types import Tile

# What a window shows around a place at least; most show twice as much.
REACH_UM = 3.2
# Few sizes, so that windows go through the detector in batches; all are multiples of a pyramid's coarsest stride.
STEP_PX = 32
SIDES_PX = (128, 160, 224, 320, 448, 640)
# Windows with more of the pixels of the grid than this save nothing: each place costs more than its pixels.
MOST_OF_GRID = 0.65
MOST_PLACES = 1.5
SHARED = 0.8

Place = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GridView:
    """Tiles that cover a picture (`height`, `width`); each answers for its core."""

    tiles: Sequence[Tile]
    height: int
    width: int
    overlap_px: int
    margin_px: float

    def answers(self, boxes: Boxes, tile: Tile) -> Mask:
        """For which boxes (N,4), in pixels of the picture, one of the tiles answers."""
        whole = whole_in_tile(boxes, tile, self.height, self.width, self.margin_px)
        return whole & in_core(boxes, tile, self.height, self.width, self.overlap_px, self.margin_px)

    def cuts(self, boxes: Boxes, tile: Tile) -> Mask:
        """None of them: what one tile cuts another has whole."""
        return np.zeros(len(boxes), bool)


@dataclass(frozen=True, slots=True)
class WindowView:
    """Windows over places of a picture (`height`, `width`); where some overlap, the one that a cell lies deepest in
    answers, and each that comes within `margin_px` of it, as two windows do not see a cell in the very same place."""

    tiles: Sequence[Tile]
    height: int
    width: int
    margin_px: float

    def answers(self, boxes: Boxes, tile: Tile) -> Mask:
        """For which boxes (N,4), in pixels of the picture, one of the windows answers."""
        return self._whole(boxes, tile) & self._deepest(boxes, tile)

    def cuts(self, boxes: Boxes, tile: Tile) -> Mask:
        """Which boxes (N,4) no window has whole, as the one that they lie deepest in cuts them."""
        return ~self._whole(boxes, tile) & self._deepest(boxes, tile)

    def _whole(self, boxes: Boxes, tile: Tile) -> Mask:
        return whole_in_tile(boxes, tile, self.height, self.width, self.margin_px)

    def _deepest(self, boxes: Boxes, tile: Tile) -> Mask:
        deepest = np.max([depths(boxes, other, self.height, self.width) for other in self.tiles], axis=0)
        mask: Mask = depths(boxes, tile, self.height, self.width) >= deepest - self.margin_px
        return mask


def windows_over(places: Boxes, height: int, width: int, reach_px: float) -> list[Tile] | None:
    """Windows of a picture (`height`, `width`) that show each place (N,4) and `reach_px` around it.

    They begin at multiples of STEP_PX, where a whole look's tiles begin too, and are squares of SIDES_PX but for those
    that the picture ends. Places share a window where that is less to look at. None where a place fits in none, or
    there are more places than windows that would fill the picture.
    """
    if len(places) * SIDES_PX[0] ** 2 > MOST_PLACES * height * width:
        return None
    kept: list[tuple[Place, Tile]] = []
    for place in places[np.lexsort((places[:, 0], places[:, 1]))]:
        window = window_over(place, height, width, reach_px)
        if window is None:
            return None
        kept = _added(place, window, kept, reach_px, (height, width))
    return [window for _, window in kept]


def _added(
    place: Place, window: Tile, kept: list[tuple[Place, Tile]], reach_px: float, shape: tuple[int, int]
) -> list[tuple[Place, Tile]]:
    """`kept` with one place more, which shares the windows of those that it can."""
    others = np.array([other for other, _ in kept], np.float32).reshape(-1, 4)
    both = np.concatenate([np.minimum(place[:2], others[:, :2]), np.maximum(place[2:], others[:, 2:])], 1)
    for k in np.flatnonzero((both[:, 2:] - both[:, :2]).max(1) <= SIDES_PX[-1] - 2 * reach_px):
        shared = window_over(both[k], *shape, reach_px)
        if shared is not None and area_of([shared]) <= SHARED * area_of([window, kept[k][1]]):
            return _added(both[k], shared, kept[:k] + kept[k + 1 :], reach_px, shape)
    return [*kept, (place, window)]


def window_over(place: Place, height: int, width: int, reach_px: float) -> Tile | None:
    """The square window over one place (4,); None where it fits in none."""
    for side in SIDES_PX:
        x, y = (_start(place[i], place[i + 2], n, side, reach_px) for i, n in enumerate((width, height)))
        if x is not None and y is not None:
            return Tile(y, x, min(height - y, side), min(width - x, side))
    return None


def _start(low: float, high: float, length: int, side: int, reach_px: float) -> int | None:
    """Where a window of `side` begins that shows `low` to `high`, and `reach_px` on both sides, along an axis.

    What it shows more is about the same on both. None where it shows less; the picture's own ends are no loss.
    """
    farthest = math.ceil(max(0, length - side) / STEP_PX)
    first = min(math.ceil((high + reach_px - side) / STEP_PX), farthest)
    last = max(math.floor((low - reach_px) / STEP_PX), 0)
    if first > last:
        return None
    middle = round((low + high - side) / 2 / STEP_PX)
    return STEP_PX * int(np.clip(middle, max(first, 0), min(last, farthest)))


def depths(boxes: Boxes, tile: Tile, height: int, width: int) -> NDArray[np.float32]:
    """How far the middles of boxes (N,4) lie from the nearest inner edge of a tile, in px; below 0 outside of it.

    Boxes and tile are in pixels of a picture of (height, width), whose own edges are none.
    """
    depth = np.full(len(boxes), np.inf, np.float32)
    for axis, (start, end, length) in enumerate(
        ((tile.x, tile.x + tile.width, width), (tile.y, tile.y + tile.height, height))
    ):
        middles = (boxes[:, axis] + boxes[:, axis + 2]) / 2
        if start > 0:
            depth = np.minimum(depth, middles - start)
        if end < length:
            depth = np.minimum(depth, end - middles)
    return depth


def area_of(tiles: Sequence[Tile]) -> int:
    """The pixels of all tiles."""
    return sum(tile.height * tile.width for tile in tiles)
