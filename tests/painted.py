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


def mottled(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A field uint8 (H,W,3) with blotches on its ground, others for each seed: cells of two fields look less alike."""
    h, w = pixels.shape[:2]
    blotches = np.random.default_rng(seed).integers(-45, 20, (h // 10 + 1, w // 10 + 1))
    spread = np.kron(blotches, np.ones((10, 10), int))[:h, :w, None]
    is_ground = pixels.min(2, keepdims=True) > 200
    return np.where(is_ground, pixels + spread, pixels).astype(np.uint8)


def make_slide(folder: UPath, n: int, cells: int = 5) -> UPath:
    """Write `n` fields of 320x240 px into a folder; field i holds `cells` + i discs of 7 µm at 0.2 µm per px."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        discs = [(30 + 50 * (k % 6), 30 + 60 * (k // 6), 17) for k in range(cells + i)]
        with (folder / f"f{i:03d}.png").open("wb") as file:
            Image.fromarray(mottled(paint(240, 320, discs), i)).save(file, "PNG")
    return folder
