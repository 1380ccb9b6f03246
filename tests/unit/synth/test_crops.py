"""Rendered debris and giant platelets: something in the middle of each window, the same for the same seed."""

import numpy as np
import pytest

from wbc.datasets.crops import PATCH_PX, Crops
from wbc.synth.crops import render_debris


@pytest.fixture(scope="module")
def crops() -> Crops:
    return render_debris(8, seed=3)


def test_all_are_called_what_they_are(crops: Crops) -> None:
    assert crops.labels == ("not_a_white_cell",) * 8
    assert len(set(crops.names)) == 8


def test_something_lies_in_the_middle_of_each(crops: Crops) -> None:
    near = slice(PATCH_PX // 2 - 10, PATCH_PX // 2 + 10)
    ground = np.percentile(crops.pixels.reshape(len(crops.pixels), -1, 3), 90, axis=1)
    darkest = crops.pixels[:, near, near].reshape(len(crops.pixels), -1, 3).min(1)
    assert (ground - darkest).max(1).min() > 15


def test_the_same_seed_gives_the_same_crops(crops: Crops) -> None:
    np.testing.assert_array_equal(render_debris(8, seed=3).pixels, crops.pixels)
    assert (render_debris(8, seed=4).pixels != crops.pixels).any()
