"""Perceptual prints of cells, by which a cell that two overlapping fields show is known again.

Signs of the lowest frequencies of brightness against their median (pHash; Zauner 2010, "Implementation and benchmarking
of perceptual image hash functions", there 8×8 frequencies, here 16×16), about the cell's darkest part (mean shift;
Comaniciu & Meer 2002, "Mean shift: a robust approach toward feature space analysis"), as boxes of one cell differ by a
few pixels from field to field.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from wbc.cells.crop import square_around

SIDE_PX, FREQUENCIES = 32, 16
PRINT_UM = 26.0  # the side of what is seen of a cell: with its neighbours, which are the same, too
NEAR_UM, STEPS = 4.0, 10  # of the mean shift: its window's standard deviation, and its steps
FARTHEST_UM = 4.0  # that a print's middle is from its box's
PLACES_UM = ((np.arange(SIDE_PX) + 0.5) / SIDE_PX - 0.5) * PRINT_UM  # of the pixels of what is seen, about its middle
PLANE = np.stack([np.ones(SIDE_PX**2), np.repeat(PLACES_UM, SIDE_PX), np.tile(PLACES_UM, SIDE_PX)], 1)
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
    side, farthest = PRINT_UM / um_per_px, FARTHEST_UM / um_per_px
    for x0, y0, x1, y1 in boxes:
        around, (left, top, *_) = square_around(pixels, (x0 + x1) / 2, (y0 + y1) / 2, side + 2 * farthest)
        grey, corner = around.convert("L"), np.array([left, top]) + farthest
        away = _darkest(_seen(grey, corner, side))
        light = _seen(grey, corner + away / um_per_px, side)
        sides = np.array([x1 - x0, y1 - y0]) * um_per_px
        prints.append(np.packbits(print_of(light)).tobytes().hex() if _has_neighbours(light, sides, -away) else "")
    return prints


def _seen(grey: Image.Image, corner: NDArray[np.float64], side: float) -> NDArray[np.float32]:
    """The brightness (32,32) of a square of a grey picture, by its upper left corner (x, y)."""
    (x0, y0), (x1, y1) = corner, np.minimum(corner + side, grey.size)
    return np.asarray(grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR, (x0, y0, x1, y1)), np.float32)


def _darkest(light: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where the middle of what is dark lies, (x, y) in µm from the middle of `light` (32,32)."""
    level = light - _slope(light)
    dark = (np.median(level) - level).clip(min=0)
    at = np.zeros(2)
    for _ in range(STEPS):
        near = np.exp(-(((PLACES_UM - at[:, None]) / NEAR_UM) ** 2) / 2)
        weights = near * (near[1] @ dark, dark @ near[0])
        if not (total := weights[0].sum()):
            break
        at = weights @ PLACES_UM / total
    return at * min(1.0, FARTHEST_UM / max(float(np.hypot(*at)), FARTHEST_UM))


def _slope(light: NDArray[np.float32], where: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """The plane (32,32) that fits `light` best, `where` it is asked: light falls off towards a field's edge."""
    place = slice(None) if where is None else where.ravel()
    fit = np.linalg.lstsq(PLANE[place], light.ravel()[place], rcond=None)[0]
    return np.asarray(PLANE @ fit, np.float32).reshape(light.shape)


def _has_neighbours(light: NDArray[np.float32], sides: NDArray[np.float64], middle: NDArray[np.float64]) -> bool:
    """Whether more than an even ground is about a cell whose box has `sides` and a `middle` (x, y), in µm."""
    pixel = PRINT_UM / SIDE_PX
    half = sides.clip(min=4 * pixel) / 2  # of what is smaller too few pixels are surely cell
    x, y = abs(PLACES_UM - middle[:, None]) / half[:, None]
    around = np.maximum(y[:, None], x) > 1 + pixel / half.min()
    if around.sum() < SIDE_PX:  # the cell is as large as all that is seen of it
        return False
    spread = np.std((light - _slope(light, around))[around])
    depth = np.percentile(light[around], 90) - np.median(light[y[:, None] ** 2 + x**2 < CORE**2])
    return bool(spread > EMPTY * max(depth, 1))
