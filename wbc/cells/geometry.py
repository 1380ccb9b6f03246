"""The red cell as yardstick, the tile grid, box arithmetic, and merging the boxes of neighbouring tiles."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from wbc.types import Detections, Tile

Boxes = NDArray[np.float32]
RED_CELL_UM = 7.2  # mean diameter of a normal red cell on a dried smear
FIRST_BLOCK = 512


def box_area(boxes: Boxes) -> NDArray[np.float32]:
    """Areas float32 (N,) of boxes (N,4) x0,y0,x1,y1."""
    area: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def box_iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Intersection over union float32 (N,M) of boxes (N,4) and (M,4); 0 where both have no area."""
    n, m = len(a), len(b)
    i, j = np.repeat(np.arange(n), m), np.tile(np.arange(m), n)
    return paired_iou(a[i], b[j]).reshape(n, m)


def paired_iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Intersection over union float32 (N,) of boxes (N,4) and (N,4), pair by pair; 0 where both have no area."""
    overlap = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    iou: NDArray[np.float32] = overlap / np.maximum(box_area(a) + box_area(b) - overlap, np.float32(1e-9))
    return iou


def balanced_size(length: int, largest_px: int, overlap_px: int) -> int:
    """The tile side that covers `length` with as few tiles as `largest_px` allows, and no wider than they need.

    Raises ValueError unless 0 <= overlap_px < largest_px.
    """
    if not 0 <= overlap_px < largest_px:
        raise ValueError(f"overlap {overlap_px} px does not fit tiles of {largest_px} px")
    if length <= largest_px:
        return max(length, overlap_px + 1)
    tiles = math.ceil((length - overlap_px) / (largest_px - overlap_px))
    return math.ceil((length + (tiles - 1) * overlap_px) / tiles)


def tile_grid(
    height: int, width: int, size: tuple[int, int], overlap_px: int, origin: tuple[int, int] = (0, 0)
) -> list[Tile]:
    """Tiles of `size` (height, width) that cover a picture so that any box up to overlap_px a side is whole in one.

    The grid may start anywhere: `origin` (y, x) shifts it, and tiles end at the picture's edge.
    Raises ValueError unless 0 <= overlap_px < size.
    """
    return [
        Tile(y0, x0, y1 - y0, x1 - x0)
        for y0, y1 in _spans(height, size[0], overlap_px, origin[0])
        for x0, x1 in _spans(width, size[1], overlap_px, origin[1])
    ]


def _spans(length: int, size: int, overlap: int, origin: int) -> list[tuple[int, int]]:
    if not 0 <= overlap < size:
        raise ValueError(f"overlap {overlap} px does not fit tiles of {size} px")
    stride = size - overlap
    start = origin % stride - (stride if origin % stride else 0)
    spans: list[tuple[int, int]] = []
    for low in range(start, length, stride):
        span = max(0, low), min(length, low + size)
        if spans and span[1] <= spans[-1][1]:
            continue
        if spans and span[0] == spans[-1][0]:
            spans.pop()
        if span[0] < span[1]:
            spans.append(span)
    return spans


def whole_in_tile(boxes: Boxes, tile: Tile, height: int, width: int, margin_px: float) -> NDArray[np.bool_]:
    """Which boxes (N,4) no inner edge of `tile` cuts; both in pixels of a picture of (height, width).

    A box that comes within `margin_px` of an inner edge counts as cut; the picture's own edges cut nothing off.
    """
    whole = np.ones(len(boxes), bool)
    if tile.x > 0:
        whole &= boxes[:, 0] > tile.x + margin_px
    if tile.y > 0:
        whole &= boxes[:, 1] > tile.y + margin_px
    if tile.x + tile.width < width:
        whole &= boxes[:, 2] < tile.x + tile.width - margin_px
    if tile.y + tile.height < height:
        whole &= boxes[:, 3] < tile.y + tile.height - margin_px
    return whole


def in_core(boxes: Boxes, tile: Tile, height: int, width: int, overlap_px: int, margin_px: float) -> NDArray[np.bool_]:
    """Which boxes (N,4) have their middle in the part that `tile` answers for; both in pixels of one picture.

    Tiles share the picture evenly: each answers up to the middle of its overlaps, and `margin_px` beyond, as two tiles
    do not see a cell in the very same place.
    """
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    return whole_in_tile(np.hstack([middles, middles]), tile, height, width, overlap_px / 2 - margin_px)


def merge(detections: Detections, iou: float) -> Detections:
    """One box a cell: of boxes of one class that overlap by more than `iou`, the one of the highest score stays.

    Greedy non-maximum suppression in falling order of score, ties broken by place, so that neither the order of the
    boxes nor the tiles they came from matter. Neighbours come from a k-d tree: 100,000 boxes take well under a second.
    """
    d = detections
    order = np.lexsort((d.boxes[:, 3], d.boxes[:, 2], d.boxes[:, 1], d.boxes[:, 0], d.labels, -d.scores))
    d = d.take(order)
    is_kept = np.zeros(len(d), bool)
    for label in np.unique(d.labels):
        members = np.flatnonzero(d.labels == label)
        is_kept[members[_suppress(d.boxes[members], iou)]] = True
    return d.take(is_kept)


def _suppress(boxes: Boxes, iou: float) -> NDArray[np.int64]:
    """Indices that greedy suppression keeps, of boxes already in falling order of score.

    Blocks, each as long as all before it, bound the number of pairs: a block first loses what the boxes already kept
    suppress, and those cannot be crowded.
    """
    survivors = np.zeros(0, np.int64)
    start = 0
    while start < len(boxes):
        block = np.arange(start, min(max(FIRST_BLOCK, 2 * start), len(boxes)))
        start = int(block[-1]) + 1
        _, lower = _overlapping(boxes, survivors, block, iou)
        free = block[~np.isin(block, lower)]
        higher, lower = _overlapping(boxes, free, free, iou)
        alive, undecided = np.zeros(len(boxes), bool), free
        while len(undecided):
            sure = undecided[~np.isin(undecided, lower)]  # nothing higher that is still undecided overlaps these
            alive[sure] = True
            out = np.unique(lower[np.isin(higher, sure)])
            undecided = np.setdiff1d(undecided, np.concatenate([sure, out]), assume_unique=True)
            open_pairs = np.isin(higher, undecided) & np.isin(lower, undecided)
            higher, lower = higher[open_pairs], lower[open_pairs]
        survivors = np.concatenate([survivors, np.flatnonzero(alive)])
    return survivors


def _overlapping(
    boxes: Boxes, a: NDArray[np.int64], b: NDArray[np.int64], iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index pairs (i of a, j of b), i < j, whose boxes overlap by more than `iou`."""
    none = np.zeros(0, np.int64)
    if not len(a) or not len(b):
        return none, none
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = (boxes[b, 2:] - boxes[b, :2]).max(1)
    reach = side * max(1 - iou, (1 / iou - 1) / 2)  # no farther apart are the middles of boxes that overlap by iou
    near = cKDTree(centre[a]).query_ball_point(centre[b], reach, p=np.inf)
    counts = np.array([len(n) for n in near])
    if not counts.sum():
        return none, none
    i = a[np.concatenate([np.asarray(n, np.int64) for n in near if n])]
    j = np.repeat(b, counts)
    first = i < j
    i, j = i[first], j[first]
    over = paired_iou(boxes[i], boxes[j]) > iou
    return i[over], j[over]
