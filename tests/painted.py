"""Painted slides, whose cells are known to the pixel."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

Discs = list[tuple[int, int, int]]  # x, y, radius in px


def paint(height: int, width: int, discs: Discs) -> NDArray[np.uint8]:
    """A white field (height, width, 3) with dark discs."""
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), 235, np.uint8)
    for cx, cy, radius in discs:
        pixels[(x - cx) ** 2 + (y - cy) ** 2 <= radius**2] = (120, 60, 90)
    return pixels


def make_slide(folder: UPath, n: int, cells: int = 5) -> UPath:
    """Write `n` fields of 320x240 px into a folder; field i holds `cells` + i discs of 7 µm at 0.2 µm per px."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        discs = [(30 + 50 * (k % 6), 30 + 60 * (k // 6), 17) for k in range(cells + i)]
        with (folder / f"f{i:03d}.png").open("wb") as file:
            Image.fromarray(paint(240, 320, discs)).save(file, "PNG")
    return folder
