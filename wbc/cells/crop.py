"""Squares cut around a point of a picture: what a classifier looks at."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# What `even_light` makes of a crop: the white of its background, and the optical density of its cell's darkest part.
WHITE, REFERENCE_DENSITY = 230, 1.1
CELL_PART, LEAST_DENSITY = 0.45, 0.08  # of half a side, what is surely cell; less density than this is no cell
GROUND_PERCENT = 8  # of a crop's pixels are brighter than what counts as its background
DENSITIES = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def square_around(
    pixels: NDArray[np.uint8], x: float, y: float, side: float
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """The whole pixels under a square of `side` pixels about (x, y) of a picture uint8 (H,W,3), and the square in them.

    Fractions of a pixel are kept; what lies outside the picture repeats its edge.
    """
    h, w = pixels.shape[:2]
    left, top = float(x) - side / 2, float(y) - side / 2
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + side)), int(np.ceil(top + side))
    region = pixels[max(0, min(y0, h - 1)) : max(1, min(y1, h)), max(0, min(x0, w - 1)) : max(1, min(x1, w))]
    pad = ((max(0, -y0), max(0, y1 - h)), (max(0, -x0), max(0, x1 - w)), (0, 0))
    if any(map(any, pad)):
        region = np.pad(region, pad, mode="edge")
    box = (left - x0, top - y0, min(left - x0 + side, region.shape[1]), min(top - y0 + side, region.shape[0]))
    return Image.fromarray(np.ascontiguousarray(region)), box


def cut_square(pixels: NDArray[np.uint8], x: float, y: float, side: float, out_px: int) -> NDArray[np.uint8]:
    """A square as of `square_around`, scaled to (out_px, out_px, 3)."""
    picture, box = square_around(pixels, x, y, side)
    square = picture.resize((out_px, out_px), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return np.asarray(square)


def even_light(crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Crops uint8 (N,S,S,3) as one lamp, camera and depth of stain would show them.

    By optical density (Beer-Lambert): the background, which few pixels are brighter than, becomes white, and the
    darkest tenth of the cell in the middle as dark as REFERENCE_DENSITY. Hues stay as they were.
    """
    if not len(crops):
        return crops
    side = crops.shape[1]
    ground = np.percentile(DENSITIES[crops[:, ::4, ::4]], GROUND_PERCENT, axis=(1, 2)).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    cell = DENSITIES[crops[:, x**2 + y**2 < CELL_PART**2][:, ::3]] - ground[:, None]
    darkest = np.percentile(cell.mean(2), 90, axis=1).clip(min=LEAST_DENSITY)
    factor = (REFERENCE_DENSITY / darkest).astype(np.float32)
    # A channel has 256 values: what each becomes is reckoned once a crop, not for every pixel.
    density = (DENSITIES - ground[:, :, None]) * factor[:, None, None]
    light = (np.exp(-density.clip(min=-0.1, max=4)) * WHITE).astype(np.uint8).reshape(len(crops), -1)
    channels = np.arange(0, 3 * 256, 256, dtype=np.uint16)
    return np.stack([np.take(table, crop + channels) for table, crop in zip(light, crops, strict=True)])
