"""White cells alone: where they may be, windows over those places, and the same cells as a whole look finds."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from painted import Discs
from torch import Tensor, nn

from wbc.cells.audit import missed
from wbc.cells.detect import detect, rescale, run_tiles
from wbc.cells.first_look import find_places
from wbc.cells.tiles import TileSettings
from wbc.cells.views import SIDES_PX, STEP_PX, WindowView, area_of, windows_over
from wbc.models.registry import LoadedModel
from wbc.sought import left_out, not_sought_words
from wbc.types import Detections, Tile

H, W = 500, 700
ALL, WHITE = TileSettings(), TileSettings(sought="white")
GROUND, NUCLEUS, RED_CELL = (238, 228, 215), (110, 60, 140), (225, 150, 140)


def smear(nuclei: Discs, red_cells: Sequence[tuple[int, int, int]] = ()) -> NDArray[np.uint8]:
    """A field (H,W,3) at 0.2 µm per px with purple and red discs."""
    y, x = np.mgrid[:H, :W]
    pixels = np.full((H, W, 3), GROUND, np.uint8)
    for discs, colour in ((red_cells, RED_CELL), (nuclei, NUCLEUS)):
        for cx, cy, radius in discs:
            pixels[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = colour
    return pixels


SPREAD = [(60 + 90 * (k % 7), 60 + 95 * (k // 7), 18) for k in range(35)]
CELLS: Discs = [(105, 110, 26), (480, 300, 24), (690, 410, 25)]


class Painted(nn.Module):
    """Finds the painted discs of a tile, red cells (1) and white ones (2) by their colour, and counts pixels seen."""

    def __init__(self, dark: nn.Module) -> None:
        super().__init__()
        self.dark, self.seen_px = dark, 0

    def forward(self, tiles: list[Tensor]) -> list[dict[str, Tensor]]:
        self.seen_px += sum(tile[0].numel() for tile in tiles)
        found = []
        for tile in tiles:
            white = self.dark([tile])[0]
            red = self.dark([torch.where(tile[1] < 0.62, 0.0, 1.0)[None] + torch.where(tile[0] < 0.6, 1.0, 0.0)])[0]
            labels = [torch.full_like(part["labels"], label) for part, label in ((red, 1), (white, 2))]
            found.append(
                {name: torch.cat([red[name], white[name]]) for name in ("boxes", "scores")}
                | {"labels": torch.cat(labels)}
            )
        return found


@pytest.fixture
def model(dark_model: LoadedModel) -> LoadedModel:
    return replace(dark_model, module=Painted(dark_model.module), card=replace(dark_model.card, classes=("rbc", "wbc")))


def sides_of(cells: Detections, label: int) -> list[tuple[float, ...]]:
    return sorted(tuple(box) for box in cells.boxes[cells.labels == label].tolist())


def test_white_cells_are_those_of_a_whole_look_and_nothing_else_is_told(model: LoadedModel) -> None:
    field = smear(CELLS, SPREAD)
    whole, white = detect([field], model, 0.2, 0.5, ALL)[0], detect([field], model, 0.2, 0.5, WHITE)[0]
    assert sides_of(white, 2) == sides_of(whole, 2)
    assert len(sides_of(white, 2)) == 3
    assert sides_of(whole, 1)
    assert not sides_of(white, 1)


def test_only_places_are_looked_at(model: LoadedModel) -> None:
    painted = model.module
    assert isinstance(painted, Painted)
    detect([smear(CELLS, SPREAD)], model, 0.2, 0.5, WHITE)
    assert painted.seen_px <= 0.3 * H * W
    painted.seen_px = 0
    assert len(detect([smear([], SPREAD)], model, 0.2, 0.5, WHITE)[0]) == 0
    assert painted.seen_px == 0, "there is no place in a field of red cells"


@given(
    discs=st.lists(st.tuples(st.integers(0, W), st.integers(0, H), st.integers(20, 32)), max_size=5),
    um_per_px=st.sampled_from([0.2, 0.13, 0.27]),
)
@settings(deadline=None, max_examples=25)
def test_windows_find_what_the_whole_look_finds_wherever_cells_lie(
    discs: Discs, um_per_px: float, dark_model: LoadedModel
) -> None:
    named = replace(dark_model, card=replace(dark_model.card, classes=("wbc",)))
    field = smear(discs)
    whole, white = (detect([field], named, um_per_px, 0.5, way)[0] for way in (ALL, WHITE))
    assert sides_of(white, 1) == sides_of(whole, 1)


def test_a_cell_that_a_window_cuts_gets_a_window_of_its_own(model: LoadedModel) -> None:
    long = smear([(200 + 3 * k, 200 + k, 24) for k in range(40)])
    pale = np.where((np.mgrid[:H, :W][1] > 240)[..., None] & (long == NUCLEUS), np.uint8(150), long)
    pale[..., 1] = np.where((pale[..., 0] == 150), 110, pale[..., 1])
    whole, white = (sides_of(detect([pale], model, 0.2, 0.5, way)[0], 2) for way in (ALL, WHITE))
    assert len(whole) == 1
    assert white == whole


# Where it cannot tell


def look(field: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return rescale(field, 1 / 3)


def test_places_are_over_nuclei_whatever_the_light() -> None:
    field = smear(CELLS, SPREAD).astype(np.float32)
    shade = 1 - 0.06 * (np.linspace(-1, 1, W) ** 2)[None, :, None]
    for light in (1.0, 0.7, np.array([0.8, 0.95, 1.0]), shade):
        places = find_places(look((field * light).astype(np.uint8)))
        assert places is not None
        assert len(places) == 3
        for x, y, _ in CELLS:
            assert ((places[:, 0] <= x / 3) & (places[:, 2] >= x / 3 - 2) & (places[:, 1] <= y / 3)).any()


def test_a_field_in_grey_or_in_the_dark_is_looked_at_whole(model: LoadedModel) -> None:
    field = smear(CELLS, SPREAD)
    grey = np.repeat(field.mean(2, keepdims=True).astype(np.uint8), 3, 2)
    assert find_places(look(grey)) is None
    assert find_places(look(field // 6)) is None
    painted = model.module
    assert isinstance(painted, Painted)
    detect([grey], model, 0.2, 0.5, WHITE)
    assert painted.seen_px >= H * W


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 400, 3), (40, 40, 3)])
def test_tiny_fields_and_empty_ones_have_no_places(shape: tuple[int, int, int]) -> None:
    assert find_places(np.full(shape, 240, np.uint8)).shape == (0, 4)  # type: ignore[union-attr]


def test_what_windows_miss_is_told(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    field = smear(CELLS, SPREAD)
    assert len(missed(field, model, 0.2, 0.5, WHITE)) == 0
    monkeypatch.setattr("wbc.cells.detect.find_places", lambda _: np.array([[20, 20, 50, 50]], np.float32))
    assert len(missed(field, model, 0.2, 0.5, WHITE)) == 2


# Windows


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(0, 650), st.integers(2, 90), st.integers(2, 90)), max_size=12),
    st.integers(0, 40),
)
@settings(deadline=None, max_examples=60)
def test_every_place_is_shown_with_its_surroundings(corners: list[tuple[int, ...]], reach: int) -> None:
    height, width = 700, 1000
    places = np.array([(x, y, x + w, y + h) for x, y, w, h in corners], np.float32).reshape(-1, 4)
    places = np.minimum(places, np.array([width, height] * 2, np.float32))
    windows = windows_over(places, height, width, reach)
    assert windows is not None
    assert all(w.x % STEP_PX == w.y % STEP_PX == 0 for w in windows)
    assert all(w.x + w.width <= width and w.y + w.height <= height for w in windows)
    for x0, y0, x1, y1 in places:
        assert any(
            w.x <= max(0, x0 - reach)
            and w.y <= max(0, y0 - reach)
            and w.x + w.width >= min(width, x1 + reach)
            and w.y + w.height >= min(height, y1 + reach)
            for w in windows
        )


def test_places_side_by_side_share_a_window_and_far_ones_do_not() -> None:
    near = np.array([[100, 100, 120, 120], [130, 105, 150, 130]], np.float32)
    assert len(windows_over(near, 700, 1000, 16) or []) == 1
    assert len(windows_over(near + np.array([[0], [400]], np.float32), 700, 1000, 16) or []) == 2


def test_what_fits_in_no_window_or_fills_the_field_is_looked_at_whole() -> None:
    assert windows_over(np.array([[0, 0, 900, 50]], np.float32), 700, 1000, 16) is None
    y, x = np.mgrid[0:700:20, 0:1000:20].reshape(2, -1).astype(np.float32)
    assert windows_over(np.stack([x, y, x + 4, y + 4], 1), 700, 1000, 16) is None
    assert windows_over(np.zeros((0, 4), np.float32), 700, 1000, 16) == []


def test_the_window_that_has_a_cell_deepest_answers_for_it() -> None:
    left, right = Tile(0, 0, 128, 128), Tile(0, 96, 128, 128)
    view = WindowView([left, right], 128, 400, 4.0)
    boxes = np.array([[40, 40, 60, 60], [102, 40, 125, 60], [104, 40, 120, 60], [115, 40, 135, 60]], np.float32)
    assert view.answers(boxes, left).tolist() == [True, False, True, False]
    assert view.answers(boxes, right).tolist() == [False, True, True, True]
    assert view.cuts(boxes, left).tolist() == [False, True, False, False]
    assert area_of([left, right]) == 2 * SIDES_PX[0] ** 2


def test_tiles_padded_alike_go_together(model: LoadedModel) -> None:
    tiles = [np.full((96, side, 3), 240, np.uint8) for side in (65, 96)]
    assert [len(found) for found in run_tiles(tiles, model, 0.5)] == [0, 0]


def test_what_is_not_sought_has_words() -> None:
    assert not_sought_words("all") == ""
    assert not_sought_words("white") == "red cells and platelets"
    assert left_out("white_and_platelets") == ("rbc",)
