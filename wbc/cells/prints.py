"""Perceptual prints of cells, by which a cell that two overlapping fields show is known again.

Signs of the lowest frequencies of brightness against their median (pHash; Zauner 2010, "Implementation and benchmarking
of perceptual image hash functions", there 8×8 frequencies, here 16×16).
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from wbc.cells.crop import cut_square

SIDE_PX, FREQUENCIES = 32, 16
PRINT_UM = 26.0  # the side of what is seen of a cell: with its neighbours, which are the same, too
CUT_PX = 64
# Cells alone on an empty ground look alike (one in 140 pairs of lymphocytes): how little their surroundings spread in
# brightness, as a part of how much darker the cell is. Around 0.01 of cells cut out, 0.07 and more in whole smears.
EMPTY = 0.05
CORE = 0.6  # of a cell's box, what is surely cell


def brightness(picture: Image.Image) -> NDArray[np.float32]:
    """A picture's brightness at 32×32 px, float32."""
    return np.asarray(picture.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), np.float32)


def print_of(light: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The print (255,) of a picture's brightness (32,32)."""
    low = dctn(light, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.asarray(low > np.median(low))


def cell_prints(pixels: NDArray[np.uint8], boxes: NDArray[np.float32], um_per_px: float) -> list[str]:
    """The print of the cell in each box (N,4) of a field uint8 (H,W,3), as hexadecimal digits.

    "" where nothing is beside the cell that would tell it from another one.
    """
    prints = []
    for x0, y0, x1, y1 in boxes:
        square = cut_square(pixels, (x0 + x1) / 2, (y0 + y1) / 2, PRINT_UM / um_per_px, CUT_PX)
        light = brightness(Image.fromarray(square))
        sides = np.array([y1 - y0, x1 - x0]) * um_per_px / PRINT_UM
        prints.append(np.packbits(print_of(light)).tobytes().hex() if _has_neighbours(light, sides) else "")
    return prints


def _has_neighbours(light: NDArray[np.float32], sides: NDArray[np.float64]) -> bool:
    """Whether more than an even ground is about a cell whose box has `sides` (2,), as parts of the picture's."""
    sides = sides.clip(min=4 / SIDE_PX)  # of what is smaller too few pixels are surely cell
    y, x = np.mgrid[-1 : 1 : SIDE_PX * 1j, -1 : 1 : SIDE_PX * 1j] / sides[:, None, None]
    around = np.maximum(abs(y), abs(x)) > 1 + 2 / SIDE_PX / sides.min()
    if around.sum() < SIDE_PX:  # the cell is as large as all that is seen of it
        return False
    lit = light[around]
    plane = np.stack([np.ones_like(lit), y[around], x[around]], 1)  # light falls off towards a field's edge
    spread = np.std(lit - plane @ np.linalg.lstsq(plane, lit, rcond=None)[0])
    depth = np.percentile(lit, 90) - np.median(light[y**2 + x**2 < CORE**2])
    return bool(spread > EMPTY * max(depth, 1))
