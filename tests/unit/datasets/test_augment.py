"""Augmentation moves boxes with their cells, changes what it should, and draws the same from the same seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from wbc.cells.crop import cut_square
from wbc.datasets.augment import Jitter, add_debris, hue_matrix, jitter_optics, jitter_stain, shear, turn
from wbc.datasets.crops import PATCH_PX, PATCH_UM, Crops
from wbc.training.classifier import normalise, tree_losses
from wbc.training.classifier_data import CropSamples, CropSettings, random_window

PLACES = [(30, 40, 25, 12), (120, 60, 10, 28), (170, 90, 14, 14)]  # middle and half axes, px
H, W = 130, 220


def painted() -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Ellipses, each dark in a channel of its own, and their boxes."""
    channels = []
    for x, y, a, b in PLACES:
        channel = Image.new("L", (W, H), 250)
        ImageDraw.Draw(channel).ellipse((x - a, y - b, x + a, y + b), fill=5)
        channels.append(np.asarray(channel))
    pixels = np.stack(channels, 2)
    return pixels, np.array(extents(pixels), np.float32)


def extents(pixels: NDArray[np.uint8]) -> list[list[int]]:
    found = []
    for channel in range(3):
        # Nothing is seen of what a shear cut off or lies beyond the picture, which is black there.
        rows, columns = np.nonzero((pixels[:, :, channel] < 128) & (pixels.sum(2) > 300))
        found.append([int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1])
    return found


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
def test_turned_boxes_stay_on_their_cells_to_the_pixel(seed: int) -> None:
    pixels, boxes = turn(*painted(), np.random.default_rng(seed))
    assert sorted(pixels.shape[:2]) == [H, W]
    assert boxes.tolist() == extents(pixels)


def test_turns_and_flips_come_in_all_eight_ways() -> None:
    ways = {turn(*painted(), np.random.default_rng(seed))[0].tobytes() for seed in range(60)}
    assert len(ways) == 8


@given(st.floats(-0.25, 0.25))
@settings(deadline=None, max_examples=40)
def test_sheared_boxes_stay_tight_on_round_cells(slope: float) -> None:
    pixels, boxes = shear(*painted(), slope)
    assert pixels.shape[0] == H
    np.testing.assert_allclose(np.clip(boxes, 0, [pixels.shape[1], H] * 2), extents(pixels), atol=1.5)


def test_a_picture_too_tall_to_shear_stays() -> None:
    pixels = np.zeros((300, 40, 3), np.uint8)
    boxes = np.array([[1, 2, 9, 9]], np.float32)
    same, still = shear(pixels, boxes, 0.3)
    assert same.shape == pixels.shape
    assert np.array_equal(still, boxes)


@given(st.floats(-np.pi, np.pi), st.floats(-np.pi, np.pi))
def test_hue_is_turned_about_grey(angle: float, other: float) -> None:
    turned = hue_matrix(angle)
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turned) == pytest.approx(1)
    np.testing.assert_allclose(turned @ np.ones(3), np.ones(3), atol=1e-12)
    np.testing.assert_allclose(turned @ hue_matrix(other), hue_matrix(angle + other), atol=1e-12)


def test_a_third_of_the_circle_takes_red_to_green() -> None:
    np.testing.assert_allclose(hue_matrix(2 * np.pi / 3) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_stain_changes_colours_and_keeps_cells_darker_than_the_ground() -> None:
    pixels, _ = painted()
    for seed in range(20):
        stained = jitter_stain(pixels, Jitter(plain=0.0), np.random.default_rng(seed))
        assert stained.shape == pixels.shape
        assert stained.dtype == np.uint8
        assert not np.array_equal(stained, pixels)
        cells = (pixels < 20).any(2)
        assert stained[cells].mean() < stained[~cells].mean() - 20
    assert jitter_stain(pixels, Jitter(plain=1.0), np.random.default_rng(0)) is pixels


def test_optics_and_debris_leave_size_and_most_of_the_picture() -> None:
    pixels, _ = painted()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen = jitter_optics(add_debris(pixels, rng), Jitter(), rng)
        assert seen.shape == pixels.shape
        assert seen.dtype == np.uint8
        assert np.median(abs(seen.astype(int) - pixels)) < 80


# Crops for the classifier


def patches(colours: list[int]) -> NDArray[np.uint8]:
    return np.stack([np.full((PATCH_PX, PATCH_PX, 3), c, np.uint8) for c in colours])


QUIET = Jitter(plain=1.0)


def samples(seed: int = 0) -> CropSamples:
    common = Crops(patches([10] * 64 + [120]), ("a",) * 64 + ("b",))
    coarse = Crops(patches([230]), ("ab",))
    rows = {"a": 0, "ab": 1, "b": 2}
    return CropSamples([(common, rows, 3.0), (coarse, rows, 1.0)], CropSettings(input_px=32), QUIET, seed)


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    one, other = samples(), samples()
    for index in (9, 2):
        (pixels, row), (again, row_again) = one[index], other[index]
        assert torch.equal(pixels, again)
        assert row == row_again
        assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)


def test_pixels_and_rows_belong_together_and_rare_kinds_are_neither_lost_nor_learnt_by_heart() -> None:
    drawn = [samples()[i] for i in range(400)]
    grey = {0: 10, 1: 230, 2: 120}
    # One pixel of light fall-off or noise is no other cell: the nearest grey must be the row's own.
    near = [min(grey, key=lambda r: abs(grey[r] - float(p.float().median()))) for p, _ in drawn]
    assert np.mean([n == row for n, (_, row) in zip(near, drawn, strict=True)]) > 0.97
    share = np.bincount([row for _, row in drawn], minlength=3) / 400
    assert share == pytest.approx([0.75 * 8 / 9, 0.25, 0.75 / 9], abs=0.07)


def test_the_window_that_is_trained_on_is_the_window_that_is_counted() -> None:
    y, x = np.mgrid[:PATCH_PX, :PATCH_PX]
    waves = np.hypot(x + 0.5 - PATCH_PX / 2, y + 0.5 - PATCH_PX / 2)  # alike however they are turned and mirrored
    waves = np.repeat((127 + 120 * np.sin(waves / 9))[..., None], 3, 2).astype(np.uint8)
    crop = CropSettings(input_px=64, um_per_px=0.25, smallest_scale=1, largest_scale=1, shift_um=0, shear=0)
    side = crop.input_px * crop.um_per_px * PATCH_PX / PATCH_UM
    counted = cut_square(waves, PATCH_PX / 2, PATCH_PX / 2, side, crop.input_px).astype(int)
    for seed in range(5):
        trained = random_window(waves, crop, np.random.default_rng(seed))
        assert np.abs(trained - counted).mean() < 4


def test_pixels_are_normalised_as_the_card_says() -> None:
    seen = normalise(torch.tensor([[[[0]], [[255]], [[51]]]], dtype=torch.uint8), (0.0, 0.5, 0.2), (1.0, 0.5, 0.1))
    torch.testing.assert_close(seen.flatten(), torch.tensor([0.0, 1.0, 0.0]))


# Coarse labels


class Fixed(nn.Module):
    """Whatever it sees, these logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits.expand(len(pixels), -1)


MATRIX = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], np.float32)  # a, its parent ab, c
HALF = (0.5, 0.5, 0.5)


def loss_of(row: int, smoothing: float = 0.0) -> tuple[float, list[float]]:
    model = Fixed([float(np.log(p)) for p in (0.5, 0.2, 0.3)])
    batch = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.full((4,), row)
    loss = tree_losses(MATRIX, HALF, HALF, smoothing)(model, batch)["loss_kind"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert model.logits.grad is not None
    return loss.item(), model.logits.grad.tolist()


def test_a_coarse_labels_probability_is_the_sum_of_its_childrens() -> None:
    assert [np.exp(-loss_of(row)[0]) for row in range(3)] == pytest.approx([0.5, 0.7, 0.3], rel=1e-5)


def test_a_coarse_label_pulls_its_children_up_as_they_stand_and_the_others_down() -> None:
    _, (a, b, c) = loss_of(1)
    assert c > 0 > a
    assert a / b == pytest.approx(0.5 / 0.2, rel=1e-4)


def test_smoothing_keeps_a_sure_model_from_being_surer() -> None:
    plain, smooth = loss_of(0)[0], loss_of(0, 0.1)[0]
    spread = -np.mean(np.log([0.5, 0.2, 0.3]))
    assert smooth == pytest.approx(0.9 * plain + 0.1 * spread, rel=1e-5)
