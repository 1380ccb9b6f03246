"""Squares cut around a point of a picture: what a classifier looks at."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def cut_square(pixels: NDArray[np.uint8], x: float, y: float, side: float, out_px: int) -> NDArray[np.uint8]:
    """A square of `side` pixels about (x, y) of a picture uint8 (H,W,3), scaled to (out_px, out_px, 3).

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
    picture = Image.fromarray(np.ascontiguousarray(region))
    square = picture.resize((out_px, out_px), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return np.asarray(square)
