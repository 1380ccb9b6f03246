"""What a picture's look is made of: light can be evened, and a stranger's look lies far from those known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wbc.cells.appearance import KnownLooks, appearance
from wbc.cells.crop import REFERENCE_DENSITY, WHITE, even_light

SIDE = 64
NUCLEUS, CYTOPLASM, RED = (1.1, 1.3, 0.7), (0.3, 0.45, 0.2), (0.15, 0.4, 0.45)  # optical densities of red, green, blue


def crops(n: int, lamp: tuple[float, ...] = (1, 1, 1), depth: float = 1.0, seed: int = 0) -> NDArray[np.uint8]:
    """Cells with a nucleus, red cells in the corners, under a lamp and a depth of stain, with a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    density = np.zeros((n, SIDE, SIDE, 3), np.float32)
    for cell in density:
        cell[np.hypot(abs(x) - 0.85, abs(y) - 0.85) < 0.25] = RED
        cell[np.hypot(x, y) < 0.45] = CYTOPLASM
        cell[np.hypot(x - rng.uniform(-0.1, 0.1), y) < 0.28] = NUCLEUS
    light = np.exp(-depth * density) * np.array(lamp) * 250 + rng.normal(0, 0.5, density.shape)
    return np.clip(light, 0, 255).astype(np.uint8)


@given(st.tuples(*[st.floats(0.5, 1)] * 3), st.floats(0.6, 1.4))
def test_evened_cells_look_the_same_under_any_lamp_and_depth_of_stain(lamp: tuple[float, ...], depth: float) -> None:
    assert np.abs(even_light(crops(2, lamp, depth)).astype(int) - even_light(crops(2))).mean() < 2.5


def test_evened_ground_is_white_and_the_nucleus_as_dark_as_it_says() -> None:
    light = even_light(crops(1, (0.5, 0.9, 0.7), 0.7))[0]
    assert np.abs(light[2, SIDE // 2].astype(int) - WHITE).max() <= 3
    density = -np.log((light[SIDE // 2, SIDE // 2].astype(float) + 1) / (WHITE + 1))
    assert density.mean() == pytest.approx(REFERENCE_DENSITY, abs=0.06)
    assert density / density.mean() == pytest.approx(np.array(NUCLEUS) / np.mean(NUCLEUS), abs=0.06)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_crop_of_nothing_is_evened_too(level: int) -> None:
    light = even_light(np.full((1, SIDE, SIDE, 3), level, np.uint8))
    assert light.dtype == np.uint8
    assert np.ptp(light) == 0
    assert even_light(np.zeros((0, SIDE, SIDE, 3), np.uint8)).shape == (0, SIDE, SIDE, 3)


def test_every_pixel_is_evened_by_its_own_density() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    seen = np.concatenate([noise, crops(2, (0.6, 0.8, 1.0), 0.8)])
    density = -np.log((seen.astype(np.float32) + 1) / 256)
    density -= np.percentile(density[:, ::4, ::4], 8, axis=(1, 2)).astype(np.float32)[:, None, None]
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    darkest = np.percentile(density.mean(3)[:, x**2 + y**2 < 0.45**2][:, ::3], 90, axis=1)
    density *= (REFERENCE_DENSITY / darkest).astype(np.float32)[:, None, None, None]
    light = (np.exp(-density.clip(min=-0.1, max=4)) * WHITE).astype(np.uint8)
    np.testing.assert_array_equal(even_light(seen), light)


def test_a_strange_lamp_stain_or_focus_is_far_and_another_cell_is_not() -> None:
    looks = appearance(crops(60))
    known = KnownLooks(looks, np.full(looks.shape[1], 0.05, np.float32), np.inf)
    same = np.median(known.distance(appearance(crops(50, seed=1))))
    blurred = np.stack([(c + np.roll(c, 2, 0) + np.roll(c, 2, 1)) / 3 for c in crops(50).astype(float)]).astype(
        np.uint8
    )
    for strange in (crops(50, (0.6, 0.7, 1)), crops(50, depth=0.6), crops(50)[..., ::-1], blurred):
        assert np.median(known.distance(appearance(strange))) > 3 * same


def test_no_cell_has_no_look() -> None:
    looks = appearance(crops(5))
    assert looks.shape == (5, 29)
    assert looks.dtype == np.float32
    nothing = appearance(np.zeros((0, SIDE, SIDE, 3), np.uint8))
    assert nothing.shape == (0, 29)
    assert KnownLooks(looks, np.ones(29, np.float32), np.inf).distance(nothing).shape == (0,)


def test_a_slide_of_a_known_laboratory_is_within_the_limit_and_a_strangers_beyond() -> None:
    laboratories = [appearance(crops(120, lamp, depth)) for lamp, depth in (((1, 1, 1), 1.0), ((0.8, 0.7, 1), 0.8))]
    known = KnownLooks.of(laboratories)
    again = KnownLooks.from_arrays(
        {name: a.astype(np.float16).astype(np.float32) for name, a in known.arrays().items()}
    )
    assert again is not None
    for looks in laboratories:
        assert np.median(again.distance(looks[:50])) <= known.limit
    fresh = appearance(crops(50, (0.8, 0.7, 1), 0.8, seed=5))
    assert np.median(again.distance(fresh)) <= known.limit * 1.1
    assert np.median(again.distance(appearance(crops(50, (1, 0.7, 0.6), 0.9)))) > known.limit
    assert KnownLooks.from_arrays({}) is None


def test_a_stranger_whose_cells_were_named_is_one_no_more() -> None:
    known = KnownLooks.of([appearance(crops(120))])
    strange = [appearance(crops(60, (1, 0.7, 0.6), 0.9, seed)) for seed in (1, 2)]
    assert np.median(known.distance(strange[1])) > known.limit
    taught = known.including(strange[0])
    assert np.median(taught.distance(strange[1])) <= taught.limit
    assert np.median(taught.distance(appearance(crops(50, (0.5, 1, 0.6), 1.2)))) > taught.limit
