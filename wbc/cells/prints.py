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


def brightness(picture: Image.Image) -> NDArray[np.float32]:
    """A picture's brightness at 32×32 px, float32."""
    return np.asarray(picture.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), np.float32)


def print_of(light: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The print (255,) of a picture's brightness (32,32)."""
    low = dctn(light, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.asarray(low > np.median(low))


def cell_prints(pixels: NDArray[np.uint8], boxes: NDArray[np.float32], um_per_px: float) -> list[str]:
    """The print of the cell in each box (N,4) of a field uint8 (H,W,3), as hexadecimal digits."""
    prints = []
    for x0, y0, x1, y1 in boxes:
        square = cut_square(pixels, (x0 + x1) / 2, (y0 + y1) / 2, PRINT_UM / um_per_px, CUT_PX)
        prints.append(np.packbits(print_of(brightness(Image.fromarray(square)))).tobytes().hex())
    return prints
