"""The one white cell of a picture is found wherever it lies, and what turning the picture left black is not seen."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from wbc.datasets.crops import TableForm, read_crop_table
from wbc.datasets.lone_cell import centred

GROUND, RED_CELL, NUCLEUS = (220, 215, 225), (205, 150, 160), (110, 60, 160)
UM_PER_PX = 0.565


def disc(pixels: NDArray[np.uint8], x: int, y: int, radius: int, colour: tuple[int, int, int]) -> None:
    rows, columns = np.indices(pixels.shape[:2])
    pixels[np.hypot(rows - y, columns - x) < radius] = colour


def smear(x: int, y: int) -> NDArray[np.uint8]:
    """60×80 px with a nucleus about (x, y), red cells in every corner, and a corner left black."""
    pixels = np.full((60, 80, 3), GROUND, np.uint8)
    for at in ((14, 12), (66, 12), (14, 48), (66, 48)):
        disc(pixels, *at, 6, RED_CELL)
    disc(pixels, x, y, 8, NUCLEUS)
    pixels[np.add.outer(np.arange(60), np.arange(80)) < 14] = 3
    return pixels


@pytest.mark.parametrize(("x", "y"), [(40, 30), (12, 34), (70, 50), (78, 3)])
def test_the_cell_comes_to_the_middle_wherever_it_lies(x: int, y: int) -> None:
    square = centred(smear(x, y), UM_PER_PX, 26.0)
    assert square.shape == (48, 48, 3)
    nucleus = np.argwhere((square == NUCLEUS).all(2))
    at_edge = x == 78
    np.testing.assert_allclose(nucleus.mean(0), (24, 24), atol=3 if at_edge else 1)
    assert square.max(2).min() > 100  # neither a black corner nor a black margin
    assert (square[0, 0] == GROUND).all() or not at_edge


def test_a_picture_without_purple_or_of_nothing_gives_a_square_all_the_same() -> None:
    for value in (0, 230):
        square = centred(np.full((60, 80, 3), value, np.uint8), UM_PER_PX, 26.0)
        assert square.shape == (48, 48, 3)
        assert square.min() == square.max()


def test_a_table_of_such_cells_is_read_about_them(tmp_path: Path) -> None:
    packed = io.BytesIO()
    Image.fromarray(smear(70, 50)).save(packed, "PNG")
    rows = {"split": ["train"], "kind": ["monocyte"], "jpeg": [packed.getvalue()]}
    pd.DataFrame(rows).to_parquet(tmp_path / "cells.parquet")
    found, plain = (
        read_crop_table(tmp_path / "cells.parquet", "train", TableForm(UM_PER_PX, find_cell=find)).pixels[0]
        for find in (True, False)
    )
    np.testing.assert_allclose(found[88, 88], NUCLEUS, atol=3)
    assert np.abs(plain[88, 88].astype(int) - NUCLEUS).max() > 50
