"""Tiles cover fields, boxes meet as they should, and merging leaves one box a cell whatever order they come in."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision import ops

from wbc.cells.crop import cut_square
from wbc.cells.geometry import balanced_size, box_area, box_iou, in_core, merge, paired_iou, tile_grid, whole_in_tile
from wbc.types import Detections, Tile

lengths = st.integers(1, 160)
origins = st.tuples(st.integers(-400, 400), st.integers(-400, 400))
ious = st.sampled_from([0.2, 0.3, 0.5, 0.7, 0.9])


@st.composite
def size_and_overlap(draw: st.DrawFn) -> tuple[int, int]:
    size = draw(st.integers(6, 90))
    return size, draw(st.integers(0, size - 5))


# Tiles


@given(lengths, lengths, size_and_overlap(), origins)
@settings(deadline=None)
def test_grid_covers_every_pixel_of_the_field_and_none_beyond(
    height: int, width: int, tiling: tuple[int, int], origin: tuple[int, int]
) -> None:
    size, overlap = tiling
    covered = np.zeros((height, width), int)
    for tile in tile_grid(height, width, (size, size), overlap, origin):
        assert tile.height <= size
        assert tile.width <= size
        assert tile.y + tile.height <= height
        assert tile.x + tile.width <= width
        covered[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] += 1
    assert covered.min() >= 1


@given(lengths, lengths, size_and_overlap(), origins, st.data())
@settings(deadline=None)
def test_a_box_up_to_the_overlap_lies_whole_in_some_tile(
    height: int, width: int, tiling: tuple[int, int], origin: tuple[int, int], data: st.DataObject
) -> None:
    size, overlap = tiling
    w, h = (data.draw(st.floats(0, min(overlap, side))) for side in (width, height))
    x, y = data.draw(st.floats(0, width - w)), data.draw(st.floats(0, height - h))
    slack = 1e-6
    assert any(
        t.x <= x + slack and t.y <= y + slack and x + w <= t.x + t.width + slack and y + h <= t.y + t.height + slack
        for t in tile_grid(height, width, (size, size), overlap, origin)
    )


@given(lengths, size_and_overlap(), st.integers(-400, 400))
def test_no_tile_lies_within_another(length: int, tiling: tuple[int, int], origin: int) -> None:
    size, overlap = tiling
    spans = [(t.x, t.x + t.width) for t in tile_grid(1, length, (size, size), overlap, (0, origin))]
    assert not [(a, b) for a in spans for b in spans if a != b and a[0] <= b[0] and b[1] <= a[1]]
    assert len(set(spans)) == len(spans)


@given(st.integers(1, 5000), size_and_overlap())
def test_balanced_size_needs_no_more_tiles_than_the_largest_and_no_wider(length: int, tiling: tuple[int, int]) -> None:
    largest, overlap = tiling

    def tiles(size: int) -> int:
        return len(tile_grid(1, length, (1 + overlap, size), overlap))

    balanced = balanced_size(length, largest, overlap)
    assert overlap < balanced <= largest
    assert tiles(balanced) == tiles(largest)
    assert balanced == overlap + 1 or tiles(balanced - 1) > tiles(largest)


@pytest.mark.parametrize(("size", "overlap"), [(10, 10), (10, 11), (10, -1)])
def test_an_overlap_that_does_not_fit_the_tile_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap {overlap} px does not fit tiles of {size} px"):
        tile_grid(50, 50, (size, size), overlap)
    with pytest.raises(ValueError, match=f"overlap {overlap} px does not fit tiles of {size} px"):
        balanced_size(50, size, overlap)


def test_only_inner_tile_edges_cut_boxes() -> None:
    boxes = np.array([[0, 0, 9, 9], [52, 5, 58, 9], [55, 5, 60, 9], [10, 40, 20, 49]], np.float32)
    left, right = Tile(0, 0, 50, 60), Tile(0, 40, 50, 60)
    assert whole_in_tile(boxes, left, 50, 100, 1.0).tolist() == [True, True, False, True]
    assert whole_in_tile(boxes, right, 50, 100, 1.0).tolist() == [False, True, True, False]
    assert whole_in_tile(boxes, Tile(0, 0, 50, 100), 50, 100, 1.0).all()


def test_every_place_is_in_one_core_and_near_a_border_in_those_beside() -> None:
    tiles, overlap, margin = tile_grid(90, 100, (50, 60), 20, (7, 13)), 20, 2.0
    x, y = (p.ravel() for p in np.meshgrid(np.arange(0.25, 100), np.arange(0.25, 90)))
    around = np.stack([x - 3, y - 2, x + 3, y + 2], 1).astype(np.float32)
    alone = np.sum([in_core(around, t, 90, 100, overlap, 0.0) for t in tiles], axis=0)
    assert (alone == 1).all()
    shared = np.sum([in_core(around, t, 90, 100, overlap, margin) for t in tiles], axis=0)
    near_x, near_y = (
        np.min([np.abs(p - side - overlap / 2) for side in {getattr(t, axis) for t in tiles} - {0}], axis=0) < margin
        for p, axis in ((x, "x"), (y, "y"))
    )
    assert (shared == (1 + near_x) * (1 + near_y)).all()


# Boxes


def random_boxes(rng: np.random.Generator, n: int, reach: float = 200) -> NDArray[np.float32]:
    """Quarters of a pixel: areas and their quotients are then exact enough for any order of arithmetic."""
    low = rng.integers(0, int(reach * 4), (n, 2))
    return (np.hstack([low, low + rng.integers(1, 160, (n, 2))]) / 4).astype(np.float32)


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(0, 30))
@settings(deadline=None)
def test_iou_is_torchvisions(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, n), random_boxes(rng, m)
    expected = ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(box_iou(a, b), expected, atol=1e-6)
    k = min(n, m)
    np.testing.assert_allclose(paired_iou(a[:k], b[:k]), np.diag(expected[:k, :k]), atol=1e-6)


def test_boxes_without_area_overlap_nothing() -> None:
    point = np.array([[3, 3, 3, 3]], np.float32)
    assert box_iou(point, point).tolist() == [[0.0]]
    assert box_area(np.zeros((0, 4), np.float32)).shape == (0,)


# Merging


def detections(rng: np.random.Generator, n: int, classes: int = 2, levels: int = 0) -> Detections:
    scores = rng.integers(1, levels + 1, n) / levels if levels else (rng.permutation(n) + 1) / (n + 1)
    labels = rng.integers(1, classes + 1, n)
    return Detections(random_boxes(rng, n), scores.astype(np.float32), labels.astype(np.int64))


def as_rows(d: Detections) -> list[tuple[float, ...]]:
    return [(*box, score, label) for box, score, label in zip(d.boxes.tolist(), d.scores, d.labels, strict=True)]


def torchvision_nms(d: Detections, iou: float) -> Detections:
    boxes, scores, labels = (torch.from_numpy(v) for v in (d.boxes, d.scores, d.labels))
    return d.take(ops.batched_nms(boxes.double(), scores.double(), labels, iou).numpy())


@given(st.integers(0, 2**32), st.integers(0, 400), ious)
@settings(deadline=None, max_examples=60)
def test_merging_is_torchvisions_suppression(seed: int, n: int, iou: float) -> None:
    d = detections(np.random.default_rng(seed), n)
    assert sorted(as_rows(merge(d, iou))) == sorted(as_rows(torchvision_nms(d, iou)))


def test_merging_thousands_of_crowded_boxes_is_torchvisions_suppression() -> None:
    rng = np.random.default_rng(3)
    d = detections(rng, 6000, classes=3)
    assert sorted(as_rows(merge(d, 0.5))) == sorted(as_rows(torchvision_nms(d, 0.5)))


@given(st.integers(0, 2**32), st.integers(0, 200), ious, st.sampled_from([0, 1, 3]))
@settings(deadline=None, max_examples=60)
def test_merging_again_changes_nothing_and_order_does_not_matter(seed: int, n: int, iou: float, levels: int) -> None:
    rng = np.random.default_rng(seed)
    d = detections(rng, n, levels=levels)
    d = d.take(rng.integers(0, max(n, 1), n + n // 3))  # with doubles, and scores that tie
    once = merge(d, iou)
    assert as_rows(merge(once, iou)) == as_rows(once)
    assert as_rows(merge(d.take(rng.permutation(len(d))), iou)) == as_rows(once)


def test_a_hundred_thousand_boxes_merge_as_their_clumps_do_alone() -> None:
    rng = np.random.default_rng(5)
    clump, n = np.repeat(np.arange(2500), 40), 100_000
    low = np.stack([clump % 50, clump // 50], 1) * 100 + rng.integers(0, 160, (n, 2)) / 4
    boxes = np.hstack([low, low + rng.integers(40, 160, (n, 2)) / 4]).astype(np.float32)
    d = Detections(boxes, ((rng.permutation(n) + 1) / n).astype(np.float32), np.ones(n, np.int64))
    merged = merge(d, 0.5)
    where = merged.boxes[:, 0] // 100 + 50 * (merged.boxes[:, 1] // 100)
    for number in range(0, 2500, 125):
        alone = torchvision_nms(d.take(clump == number), 0.5)
        assert sorted(as_rows(merged.take(where == number))) == sorted(as_rows(alone))


def test_classes_do_not_suppress_each_other() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    d = Detections(boxes, np.array([0.9, 0.8], np.float32), np.array([1, 2]))
    assert len(merge(d, 0.5)) == 2
    assert len(merge(Detections(boxes, d.scores, np.array([1, 1])), 0.5)) == 1


def test_merging_nothing_gives_nothing() -> None:
    assert len(merge(Detections.empty(), 0.5)) == 0


# Squares


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)


def test_a_square_inside_the_picture_is_its_pixels(picture: NDArray[np.uint8]) -> None:
    assert np.array_equal(cut_square(picture, 20, 15, 10, 10), picture[10:20, 15:25])


@pytest.mark.parametrize(("x", "y"), [(0, 0), (49, 39), (0, 39), (25, 40)])
def test_beyond_the_picture_a_square_repeats_its_edge(picture: NDArray[np.uint8], x: int, y: int) -> None:
    padded = np.pad(picture, ((20, 20), (20, 20), (0, 0)), mode="edge")
    assert np.array_equal(cut_square(picture, x, y, 20, 20), padded[y + 10 : y + 30, x + 10 : x + 30])


@given(st.floats(0, 50), st.floats(0, 40), st.floats(2, 130), st.sampled_from([8, 32]))
@settings(deadline=None, max_examples=50)
def test_a_square_of_one_colour_stays_it_at_any_place_and_scale(x: float, y: float, side: float, out_px: int) -> None:
    flat = np.full((40, 50, 3), (200, 10, 90), np.uint8)
    assert np.array_equal(cut_square(flat, x, y, side, out_px), np.broadcast_to(flat[0, 0], (out_px, out_px, 3)))


def test_fractions_of_a_pixel_move_the_square() -> None:
    ramp = np.repeat(np.arange(0, 200, 4, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    whole, half = cut_square(ramp, 20, 20, 10, 10), cut_square(ramp, 20.5, 20, 10, 10)
    assert np.array_equal(half[:, 2:-2], whole[:, 2:-2] + 2)
