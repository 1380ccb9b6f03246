"""A cell that two fields show is known again, and two cells never are one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wbc.cells.prints import cell_prints
from wbc.cells.sightings import SAME_CELL, seen_again
from wbc.synth.smear import SmearSettings, draw_stain, render_field

BITS = 255
UM_PER_PX = 0.1


def print_with(flipped: int, seed: int = 0) -> str:
    """A print that differs in so many bits from that of the same seed with none."""
    rng = np.random.default_rng(seed)
    bits = rng.random(BITS) < 0.5
    bits[rng.permutation(BITS)[:flipped]] ^= True
    return np.packbits(bits).tobytes().hex()


def again(prints: list[str], fields: list[int], scores: list[float]) -> list[bool]:
    found = seen_again(prints, np.array(fields, np.int32), np.array(scores, np.float32))
    return [bool(is_again) for is_again in found]


def test_of_a_cell_in_two_fields_the_surer_sighting_counts() -> None:
    one, other = print_with(0), print_with(0, seed=1)
    assert again([one, other, one], [0, 0, 1], [0.8, 0.9, 0.9]) == [True, False, False]
    assert again([one, other, one], [0, 0, 1], [0.9, 0.9, 0.8]) == [False, False, True]
    assert again([one, one, one], [0, 1, 2], [0.8, 0.9, 0.7]) == [True, False, True]


@pytest.mark.parametrize(("flipped", "is_same"), [(0, True), (int(SAME_CELL * BITS), True), (52, False)])
def test_prints_may_differ_a_little(flipped: int, is_same: bool) -> None:
    assert again([print_with(0), print_with(flipped)], [0, 1], [0.9, 0.8]) == [False, is_same]


def test_two_cells_of_one_field_are_two() -> None:
    assert again([print_with(0)] * 2, [3, 3], [0.9, 0.8]) == [False, False]


def test_boxes_without_a_print_are_never_the_same() -> None:
    assert again(["", "", print_with(0)], [0, 1, 2], [0.9, 0.8, 0.7]) == [False] * 3
    assert again([], [], []) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_each_cell_counts_once_whatever_the_order(cells: list[tuple[int, int]]) -> None:
    prints, fields = [print_with(0, seed) for seed, _ in cells], [field for _, field in cells]
    scores = [0.9 - 0.01 * i for i in range(len(cells))]
    found = again(prints, fields, scores)
    kept = {seed for (seed, _), is_again in zip(cells, found, strict=True) if not is_again}
    assert kept == {seed for seed, _ in cells}
    backwards = again(prints[::-1], fields[::-1], scores[::-1])[::-1]
    assert backwards == found


def rendered(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], list[str]]:
    rng = np.random.default_rng(seed)
    settings = SmearSettings(height_px=900, width_px=1200, um_per_px=UM_PER_PX, white_cells_per_field=(5, 6))
    return render_field(settings, rng, draw_stain(rng))


def whites(pixels: NDArray[np.uint8], boxes: NDArray[np.float32]) -> list[str]:
    return cell_prints(pixels, boxes, UM_PER_PX)


def test_a_cell_in_an_overlapping_field_has_nearly_the_same_print_and_others_have_not() -> None:
    pixels, boxes, kinds = rendered(1)
    white = boxes[[kind not in ("rbc", "platelet") for kind in kinds]]
    inside = white[(white[:, :2] > 160).all(1) & (white[:, 2] < 1040) & (white[:, 3] < 740)]
    assert len(inside) > 0
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    photographed_again = (np.roll(pixels, (-37, 23), (0, 1)) * 0.95 + noise).clip(0, 255).astype(np.uint8)
    moved = inside + np.array([23, -37, 23, -37], np.float32) + 1.5
    first, second = whites(pixels, inside), whites(photographed_again, moved)
    n = len(inside)
    found = again(first + second, [0] * n + [1] * n, [0.9] * n + [0.8] * n)
    assert found == [False] * n + [True] * n
    another, boxes_there, kinds_there = rendered(2)
    strangers = whites(another, boxes_there[[kind not in ("rbc", "platelet") for kind in kinds_there]])
    assert not any(again(first + strangers, [0] * n + [2] * len(strangers), [0.9] * n + [0.8] * len(strangers)))


@pytest.mark.parametrize("beside_um", [(1, 0.5), (-0.8, 0.8), (0, -1.2)])
def test_a_box_a_little_beside_its_cell_has_nearly_the_same_print(beside_um: tuple[float, float]) -> None:
    pixels, boxes, kinds = rendered(1)
    white = boxes[[kind not in ("rbc", "platelet") for kind in kinds]]
    inside = white[(white[:, :2] > 160).all(1) & (white[:, 2] < 1040) & (white[:, 3] < 740)]
    falls_off = np.linspace(1, 0.85, pixels.shape[1])[None, :, None]
    n, beside = len(inside), np.array([*beside_um, *beside_um], np.float32) / UM_PER_PX
    second = whites((pixels * falls_off).astype(np.uint8), inside + beside)
    found = again(whites(pixels, inside) + second, [0] * n + [1] * n, [0.9] * n + [0.8] * n)
    assert found == [False] * n + [True] * n


def test_no_cell_is_no_print() -> None:
    assert cell_prints(np.zeros((50, 50, 3), np.uint8), np.zeros((0, 4), np.float32), UM_PER_PX) == []


def dark_cell(neighbours: list[tuple[int, int]], slope: float) -> NDArray[np.uint8]:
    """A dark cell of 10 µm in the middle of 300 px, on a ground whose light falls off, and paler ones beside it."""
    y, x = np.mgrid[:300, :300]
    light = 220 + slope * (x - 150) / 150 + np.random.default_rng(0).normal(0, 2, x.shape)
    for x0, y0 in neighbours:
        light[(x - x0) ** 2 + (y - y0) ** 2 < 35**2] -= 45
    light[(x - 150) ** 2 + (y - 150) ** 2 < 50**2] = 110
    return np.repeat(light[..., None], 3, 2).astype(np.uint8)


@pytest.mark.parametrize("slope", [0, 25])
def test_a_cell_alone_on_its_ground_is_never_known_again(slope: float) -> None:
    box = np.array([[100, 100, 200, 200]], np.float32)
    alone, beside = (whites(dark_cell(neighbours, slope), box) for neighbours in ([], [(240, 120), (90, 230)]))
    assert alone == [""]
    assert len(beside[0]) == 64
    assert len(whites(dark_cell([(240, 120), (90, 230)], slope), np.array([[150, 150, 150, 150]], np.float32))) == 1
    filling = np.array([[20, 20, 280, 280]], np.float32)
    assert whites(dark_cell([(240, 120), (90, 230)], slope), filling) == [""]
