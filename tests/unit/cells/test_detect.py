"""Cut and reassemble: the tile grid leaves no trace in what is found, wherever it lies."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from painted import Discs, paint
from torch import Tensor, nn

from wbc.cells.detect import detect, grid, rescale, run_tiles
from wbc.cells.tiles import TileSettings
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.types import Detections

H, W = 150, 210
LARGEST_UM = 6.0  # 30 px at the detector's 0.2 µm per px
WHOLE = TileSettings(tile_px=4096, overlap_um=LARGEST_UM)


@st.composite
def apart(draw: st.DrawFn, largest_px: int) -> Discs:
    """Discs anywhere, also over the field's edge, none touching another."""
    disc = st.tuples(st.integers(-3, W + 3), st.integers(-3, H + 3), st.integers(3, largest_px // 2 - 1))
    kept: Discs = []
    for x, y, r in draw(st.lists(disc, max_size=14)):
        if all((x - a) ** 2 + (y - b) ** 2 > (r + s + 6) ** 2 for a, b, s in kept):
            kept.append((x, y, r))
    return kept


tilings = st.builds(
    TileSettings,
    tile_px=st.integers(40, 260),
    overlap_um=st.just(LARGEST_UM),
    origin=st.tuples(st.integers(-300, 300), st.integers(-300, 300)),
)


def assert_same(a: Detections, b: Detections) -> None:
    assert np.array_equal(a.boxes, b.boxes)
    assert np.array_equal(a.scores, b.scores)
    assert np.array_equal(a.labels, b.labels)


@given(discs=apart(30), tiling=tilings, batch_px=st.sampled_from([1, 20_000]))
@settings(deadline=None, max_examples=40)
def test_tiled_and_whole_find_the_painted_discs_to_the_pixel(
    discs: Discs, tiling: TileSettings, batch_px: int, dark_model: LoadedModel
) -> None:
    field = paint(H, W, discs)
    tiled, whole = (detect([field], dark_model, 0.2, 0.5, s, batch_px)[0] for s in (tiling, WHOLE))
    assert_same(tiled, whole)
    expected = []
    for disc in discs:
        rows, columns = np.nonzero(paint(H, W, [disc])[:, :, 0] < 200)
        if len(rows) >= 12:  # the detector's smallest
            expected.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
    assert sorted(tuple(b) for b in whole.boxes.tolist()) == sorted(expected)


@given(discs=apart(20), tiling=tilings, um_per_px=st.sampled_from([0.09, 0.137, 0.25, 0.3]))
@settings(deadline=None, max_examples=30)
def test_tiled_and_whole_are_one_at_another_scale(
    discs: Discs, tiling: TileSettings, um_per_px: float, dark_model: LoadedModel
) -> None:
    field = paint(H, W, discs)
    tiled, whole = (detect([field], dark_model, um_per_px, 0.5, s)[0] for s in (tiling, WHOLE))
    assert_same(tiled, whole)


@pytest.mark.parametrize("um_per_px", [0.08, 0.13, 0.2, 0.31])
def test_boxes_are_in_field_pixels_whatever_the_scale(um_per_px: float, dark_model: LoadedModel) -> None:
    discs = [(40, 40, 20), (170, 100, 25), (0, 149, 15)]
    found = detect([paint(H, W, discs)], dark_model, um_per_px, 0.5)[0]
    expected = np.array([[20, 20, 61, 61], [145, 75, 196, 126], [0, 134, 16, 150]], np.float32)
    order = np.argsort(found.boxes[:, 2])[[1, 2, 0]]
    np.testing.assert_allclose(found.boxes[order], expected, atol=2 * 0.2 / um_per_px)
    assert found.boxes.min() >= 0
    assert (found.boxes <= [W, H, W, H]).all()


def test_fields_seen_together_are_as_seen_alone(dark_model: LoadedModel) -> None:
    fields = [paint(120, 200, [(30, 30, 12)]), paint(90, 60, []), paint(120, 200, [(99, 60, 9), (150, 80, 14)])]
    tiling = TileSettings(tile_px=70, overlap_um=LARGEST_UM)
    together = detect(fields, dark_model, 0.2, 0.5, tiling, batch_px=30_000)
    assert [len(d) for d in together] == [1, 0, 2]
    for field, found in zip(fields, together, strict=True):
        assert_same(detect([field], dark_model, 0.2, 0.5, tiling)[0], found)


class Small(nn.Module):
    """A model on a GPU that bears so many tiles at once, however often it is asked for more."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most, self.refused = model, most, 0

    def forward(self, tiles: list[Tensor]) -> list[dict[str, Tensor]]:
        if len(tiles) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: list[dict[str, Tensor]] = self.model(tiles)
        return found


def test_where_memory_is_short_fewer_tiles_go_together_and_show_the_same(dark_model: LoadedModel) -> None:
    fields = [paint(120, 200, [(30, 30, 12)]), paint(120, 200, [(99, 60, 9), (150, 80, 14)])]
    tiling = TileSettings(tile_px=70, overlap_um=LARGEST_UM)
    short = Small(dark_model.module, 3)
    found = detect(fields, replace(dark_model, module=short), 0.2, 0.5, tiling, batch_px=10**6)
    assert short.refused > 1
    for ours, theirs in zip(found, detect(fields, dark_model, 0.2, 0.5, tiling), strict=True):
        assert_same(ours, theirs)
    with pytest.raises(torch.OutOfMemoryError):
        detect(fields, replace(dark_model, module=Small(dark_model.module, 0)), 0.2, 0.5, tiling)


@given(st.integers(32, 1500), st.integers(32, 1500), tilings)
@settings(deadline=None, max_examples=40)
def test_every_cell_up_to_the_largest_is_clear_of_the_edges_of_some_tile(
    height: int, width: int, tiling: TileSettings
) -> None:
    tiles = grid((height, width), LoadedModel(nn.Identity(), card_of(("rbc",)), torch.device("cpu")), tiling)
    cell, margin = LARGEST_UM / 0.2 - 1, tiling.margin_px
    for axis, length in (("y", height), ("x", width)):
        spans = {(getattr(t, axis), getattr(t, axis) + {"y": t.height, "x": t.width}[axis]) for t in tiles}
        for low in np.linspace(0, max(0, length - cell), 23):
            assert any((a == 0 or a + margin < low) and (b == length or low + cell < b - margin) for a, b in spans), (
                f"no tile has {low}..{low + cell} of {length} whole"
            )


# What a detector may say


def card_of(classes: tuple[str, ...]) -> ModelCard:
    half = (0.5, 0.5, 0.5)
    return ModelCard("said", "1", "detector", "dark_regions", {}, classes, 0.2, 0, half, half, "")


class Says(nn.Module):
    """A detector that says the same of every tile."""

    def __init__(self, boxes: Sequence[Sequence[float]], scores: list[float], labels: list[int]) -> None:
        super().__init__()
        self.said = (
            torch.tensor([list(box) for box in boxes]).reshape(-1, 4),
            torch.tensor(scores),
            torch.tensor(labels, dtype=torch.int64),
        )

    def forward(self, tiles: list[Tensor]) -> list[dict[str, Tensor]]:
        return [dict(zip(("boxes", "scores", "labels"), self.said, strict=True)) for _ in tiles]


def says(boxes: Sequence[Sequence[float]], scores: list[float], labels: list[int]) -> LoadedModel:
    return LoadedModel(Says(boxes, scores, labels), card_of(("rbc", "wbc")), torch.device("cpu"))


BLANK = np.full((100, 100, 3), 255, np.uint8)


def test_the_lowest_score_asked_for_is_kept_and_boxes_without_area_are_not() -> None:
    boxes = [[10, 10, 20, 20], [30, 30, 40, 40], [50, 50, 60, 60], [70, 70, 70, 80], [9, 9, 8, 12]]
    found = detect([BLANK], says(boxes, [0.75, 0.5, 0.4, 0.9, 0.9], [1] * 5), 0.2, 0.5)[0]
    assert found.boxes[:, 0].tolist() == [10, 30]
    assert found.scores.tolist() == [0.75, 0.5]


def test_doubles_of_one_class_are_merged_and_the_surer_stays() -> None:
    boxes = [[10, 10, 30, 30], [11, 10, 31, 30], [12, 10, 32, 30]]
    found = detect([BLANK], says(boxes, [0.7, 0.9, 0.8], [1, 1, 2]), 0.2, 0.5)[0]
    assert (found.boxes[:, 0].tolist(), found.labels.tolist()) == ([11, 12], [1, 2])


def test_boxes_beyond_the_field_are_clipped_to_it() -> None:
    found = detect([BLANK], says([[-5, -5, 20, 20], [90, 80, 130, 104]], [0.9, 0.8], [1, 1]), 0.2, 0.5)[0]
    assert found.boxes.tolist() == [[0, 0, 20, 20], [90, 80, 100, 100]]


class SurerOnTheRight(nn.Module):
    """The painted discs, each the surer the farther right it lies in its tile."""

    def __init__(self, painted: nn.Module) -> None:
        super().__init__()
        self.painted = painted

    def forward(self, tiles: list[Tensor]) -> list[dict[str, Tensor]]:
        return [
            found | {"scores": (found["boxes"][:, 0] + found["boxes"][:, 2]) / 2 / tile.shape[2]}
            for found, tile in zip(self.painted(tiles), tiles, strict=True)
        ]


def test_the_tile_that_answers_for_a_cell_says_how_sure_it_is(dark_model: LoadedModel) -> None:
    model = LoadedModel(SurerOnTheRight(dark_model.module), dark_model.card, dark_model.device)
    tiling = TileSettings(tile_px=128, overlap_um=12.0, margin_px=2.0)  # tiles of 128 px, 64 of them shared
    field = paint(100, 192, [(x, 50, 4) for x in (70, 90, 102, 122)])
    assert sorted(tile.x for tile in grid(field.shape, model, tiling)) == [0, 64]
    found = detect([field], model, 0.2, 0.0, tiling)[0]
    assert np.sort(found.boxes[:, 0]).tolist() == [66, 86, 98, 118]
    scores = found.scores[np.argsort(found.boxes[:, 0])]
    assert scores == pytest.approx([70.5 / 128, 90.5 / 128, 38.5 / 128, 58.5 / 128])


# Nothing to see


def test_no_fields_no_detections(dark_model: LoadedModel) -> None:
    assert detect([], dark_model, 0.2, 0.5) == []
    assert run_tiles([], dark_model, 0.5) == []


@pytest.mark.parametrize("tile_px", [60, 1024])
def test_an_empty_field_has_no_cells(tile_px: int, dark_model: LoadedModel) -> None:
    found = detect([BLANK], dark_model, 0.2, 0.5, TileSettings(tile_px=tile_px, overlap_um=LARGEST_UM))[0]
    assert len(found) == 0


def test_a_black_field_is_no_cell_of_any_tile(dark_model: LoadedModel) -> None:
    tiling = TileSettings(tile_px=60, overlap_um=LARGEST_UM)
    assert len(detect([np.zeros((100, 100, 3), np.uint8)], dark_model, 0.2, 0.5, tiling)[0]) == 0


# Scale


def test_a_field_at_its_scale_is_not_touched_and_a_smaller_one_keeps_its_light() -> None:
    field = np.random.default_rng(0).integers(0, 256, (90, 121, 3), np.uint8)
    assert rescale(field, 1.0) is field
    small = rescale(field, 1 / 3)
    assert small.shape == (30, 40, 3)
    np.testing.assert_allclose(small.mean((0, 1)), field.mean((0, 1)), atol=3)
    assert rescale(field, 1e-4).shape == (1, 1, 3)
