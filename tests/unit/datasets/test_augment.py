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
from wbc.datasets.augment import Jitter, add_debris, hue_matrix, jitter_optics, jitter_stain, shear, take_stain, turn
from wbc.datasets.crops import PATCH_PX, PATCH_UM, Crops
from wbc.models.cards import ModelCard
from wbc.training.classifier_data import CropSamples, CropSettings, random_window
from wbc.training.kind_losses import LossSettings, normalise, tree_losses
from wbc.training.measure import count_windows

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


def smear(ink: tuple[int, ...], light: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """A ground of one light, cells of all depths of one ink and a little of others."""
    rng = np.random.default_rng(seed)
    depth = rng.random((96, 96, 1)).clip(0.3) - 0.3
    others = depth * rng.uniform(-0.15, 0.15, (96, 96, 3))
    return np.asarray(np.array(light) * (np.array(ink) / 255) ** depth * np.exp(-others)).clip(0, 255).astype(np.uint8)


def densities(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Optical densities above the brightest (N,3)."""
    return np.asarray(np.log((pixels.max((0, 1)).astype(float) + 1) / (pixels.astype(float) + 1))).reshape(-1, 3)


def test_a_stain_that_is_taken_has_the_others_colours_on_ones_own_ground() -> None:
    own, other = smear((90, 60, 200), (240, 230, 220)), smear((200, 60, 60), (150, 160, 250), 1)
    moved = take_stain(own, other, 1.0)
    assert (moved.shape, moved.dtype) == (own.shape, np.uint8)
    np.testing.assert_allclose(np.cov(densities(moved).T), np.cov(densities(other).T), atol=0.01)
    np.testing.assert_allclose(np.percentile(moved, 95, (0, 1)), np.percentile(own, 95, (0, 1)), atol=8)


def test_no_share_of_another_stain_changes_nothing() -> None:
    own = smear((90, 60, 200), (240, 230, 220))
    assert np.abs(take_stain(own, smear((200, 60, 60), (150, 160, 250)), 0.0).astype(int) - own).max() <= 1


def test_grey_pictures_have_no_hue_and_coarse_ones_no_detail() -> None:
    pixels = smear((90, 60, 200), (240, 240, 240))
    grey = jitter_stain(pixels, Jitter(plain=0, grey=1.0, mix=0, gamma=0), np.random.default_rng(3))
    assert np.ptp(densities(grey), axis=1).max() < 0.05 < np.ptp(densities(pixels), axis=1).max()
    noisy = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    edges = [abs(np.diff(jitter_optics(noisy, Jitter(coarse=c), np.random.default_rng(s)).astype(int), axis=0)).mean()
             for c in (0.3, 1.0) for s in range(40)]  # fmt: skip
    assert np.mean(edges[:40]) < np.mean(edges[40:])


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
ROWS = {"a": 0, "ab": 1, "b": 2}


def samples(seed: int = 0) -> CropSamples:
    common = Crops(patches([10] * 64 + [120]), ("a",) * 64 + ("b",))
    coarse = Crops(patches([230]), ("ab",))
    return CropSamples([(common, ROWS, 3.0), (coarse, ROWS, 1.0)], CropSettings(input_px=32), QUIET, seed)


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


def test_cells_take_the_stain_of_another_part() -> None:
    parts = [(Crops(np.stack([np.tile(smear(ink, (240,) * 3), (2, 2, 1))[:PATCH_PX, :PATCH_PX]]), (kind,)), ROWS, 1.0)
             for ink, kind in (((60, 60, 200), "a"), ((200, 60, 60), "b"))]  # fmt: skip
    moved = CropSamples(parts, CropSettings(input_px=64, other_stain=1.0), QUIET, 0)
    kept = CropSamples(parts, CropSettings(input_px=64), QUIET, 0)
    redness = [[float(p[0].float().mean() - p[2].float().mean()) for p, row in (s[i] for i in range(60)) if row == 0]
               for s in (kept, moved)]  # fmt: skip
    assert max(redness[0]) < 0 < max(redness[1])


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
    loss = tree_losses(MATRIX, HALF, HALF, LossSettings(smoothing=smoothing))(model, batch)["loss_kind"]
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


def test_a_picture_seen_whole_and_upright_is_learnt_from_as_it_is_counted() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, PATCH_PX, PATCH_PX, 3)).astype(np.uint8)
    crops = Crops(pixels, ("monocyte",), patch_um=45.2)
    crop = CropSettings(80, 0.565, smallest_scale=1.0, largest_scale=1.0, shift_um=0.0, upright=True)
    card = ModelCard("v", "1", "classifier", "varra", {}, ("a", "b"), 0.565, 80, (0.5,) * 3, (0.5,) * 3, "")
    samples = CropSamples([(crops, {"monocyte": 0}, 1.0)], crop, Jitter(plain=1.0, optics=False), seed=0)
    seen = samples[7][0].numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(seen, count_windows(crops, card)[0])


def test_a_lamp_dimmer_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ground is 0\.8: .* at most 0\.6"):
        Jitter(ground=0.8)
