"""Red cells tell the scale of a slide, and too few of them tell nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from painted import paint
from torch import Tensor, nn

from wbc.cells.scale import ENOUGH_CELLS, estimate_um_per_px, red_cell_um
from wbc.models.registry import LoadedModel
from wbc.types import WHOLE_RED_CELL_UM, Detections


def smear(um_per_px: float, n: int, height: int = 700, width: int = 900) -> NDArray[np.uint8]:
    """At most `n` red cells in rows, from the middle of the field outwards."""
    radius = round(WHOLE_RED_CELL_UM / um_per_px / 2)
    step = round(2.6 * radius)
    places = [(x, y) for y in range(radius + 3, height, step) for x in range(radius + 3, width, step)]
    places.sort(key=lambda p: abs(p[0] - width / 2) + abs(p[1] - height / 2))
    return paint(height, width, [(x, y, radius) for x, y in places[:n]])


@pytest.mark.parametrize("um_per_px", [0.08, 0.12, 0.2, 0.33, 0.45])
def test_the_scale_is_found_without_knowing_it(um_per_px: float, dark_model: LoadedModel) -> None:
    estimate = estimate_um_per_px([smear(um_per_px, 500)], dark_model)
    assert estimate == pytest.approx(um_per_px, rel=0.05)


def test_a_field_without_red_cells_does_not_spoil_the_slide(dark_model: LoadedModel) -> None:
    full, blank = smear(0.2, 500), np.full((700, 900, 3), 250, np.uint8)
    assert estimate_um_per_px([blank, full, blank], dark_model) == estimate_um_per_px([full], dark_model)


def test_a_few_cells_do_not_tell_a_scale(dark_model: LoadedModel) -> None:
    assert estimate_um_per_px([smear(0.2, ENOUGH_CELLS - 1)], dark_model) is None
    assert estimate_um_per_px([smear(0.2, ENOUGH_CELLS)], dark_model) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("light", [0, 255])
def test_blank_fields_tell_nothing(light: int, dark_model: LoadedModel) -> None:
    assert estimate_um_per_px([np.full((240, 320, 3), light, np.uint8)], dark_model) is None
    assert estimate_um_per_px([np.full((32, 32, 3), light, np.uint8)], dark_model) is None


def test_no_field_tells_nothing(dark_model: LoadedModel) -> None:
    assert estimate_um_per_px([], dark_model) is None


def test_a_detector_without_red_cells_is_not_asked(dark_model: LoadedModel) -> None:
    white = LoadedModel(dark_model.module, replace(dark_model.card, classes=("wbc",)), dark_model.device)
    assert estimate_um_per_px([smear(0.2, 500)], white) is None


class SeesPieces(nn.Module):
    """The painted cells, and of each three pieces that it is half sure of."""

    def __init__(self, painted: nn.Module) -> None:
        super().__init__()
        self.painted = painted

    def forward(self, tiles: list[Tensor]) -> list[dict[str, Tensor]]:
        seen = []
        for found in self.painted(tiles):
            boxes = found["boxes"]
            pieces = [
                torch.cat([boxes[:, :2], boxes[:, :2] + f * (boxes[:, 2:] - boxes[:, :2])], 1) for f in (0.6, 0.7)
            ]
            pieces.append(pieces[0] + 2)
            scores = torch.cat([torch.full((len(boxes),), 0.95), torch.full((3 * len(boxes),), 0.55)])
            seen.append({"boxes": torch.cat([boxes, *pieces]), "scores": scores, "labels": found["labels"].repeat(4)})
        return seen


def test_half_sure_pieces_of_cells_do_not_move_the_scale(dark_model: LoadedModel) -> None:
    field = smear(0.2, 500)
    torn = LoadedModel(SeesPieces(dark_model.module), dark_model.card, dark_model.device)
    assert estimate_um_per_px([field], torn) == pytest.approx(estimate_um_per_px([field], dark_model), rel=0.01)


def test_red_cells_are_measured_whole_and_by_their_scores(dark_model: LoadedModel) -> None:
    model = replace(dark_model, card=replace(dark_model.card, classes=("wbc", "rbc")))
    sides = np.array([30, 30, 30, 30, 30, 30, 12, 50, 50], np.float32)
    scores = np.array([0.9] * 6 + [0.55, 0.99, 0.4], np.float32)
    labels = np.array([2] * 7 + [1, 2])
    corner = np.full((9, 2), 40, np.float32)
    cells = Detections(np.hstack([corner, corner + sides[:, None]]), scores, labels)
    assert red_cell_um(cells, (200, 200, 3), 0.25, model) == pytest.approx(7.5)
    assert red_cell_um(cells.shifted(-38, 0), (200, 200, 3), 0.25, model) is None  # the left edge may cut them
    assert red_cell_um(cells.take(np.arange(9) > 0), (200, 200, 3), 0.25, model) == pytest.approx(7.5)
    assert red_cell_um(cells.take(np.arange(9) > 1), (200, 200, 3), 0.25, model) is None  # too few
    no_red = replace(dark_model, card=replace(dark_model.card, classes=("wbc",)))
    assert red_cell_um(cells, (200, 200, 3), 0.25, no_red) is None


def test_fields_that_show_a_few_cells_each_tell_a_scale_together(dark_model: LoadedModel) -> None:
    few = [smear(0.2, ENOUGH_CELLS // 2 + i) for i in range(3)]
    assert estimate_um_per_px(few[:1], dark_model) is None
    assert estimate_um_per_px(few, dark_model) == pytest.approx(0.2, rel=0.05)


def test_pieces_of_all_sizes_are_no_red_cells(dark_model: LoadedModel) -> None:
    sizes = [9, 12, 15, 17, 21, 24]
    places = [(80 + 120 * i, 350) for i in range(6)]
    debris = paint(700, 900, [(x, y, radius) for (x, y), radius in zip(places, sizes, strict=True)])
    assert estimate_um_per_px([debris] * 3, dark_model) is None
