"""Pictures that show one white cell anywhere, as fields do that were cut small and turned for more of them."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wbc.cells.first_look import PURPLE

BLACK, SEAM_PX = 50, 2  # no channel of a corner that turning left empty is brighter; JPEG blurs its edge
GROUND_PERCENT = 90
DENSEST = 0.6  # of purple, as density: a stain's heap counts no more than a nucleus
SPREAD_UM, NUCLEUS_UM, LEAST_PURPLE = 2.3, 7.3, 0.1


def centred(pixels: NDArray[np.uint8], um_per_px: float, side_um: float) -> NDArray[np.uint8]:
    """A square uint8 (S,S,3) of `side_um` about the white cell of a picture uint8 (H,W,3), at the same scale.

    The cell is where most purple lies together. Corners that turning the picture left black, and what lies outside of
    it, have the colour of its ground.
    """
    empty = _empty_corners(pixels)
    ground = np.percentile(pixels[~empty], GROUND_PERCENT, axis=0) if not empty.all() else np.full(3, 255.0)
    seen = np.where(empty[..., None], ground.astype(np.uint8), pixels)
    x, y = _middle(seen, ground, um_per_px)
    half = math.ceil(side_um / um_per_px / 2)
    canvas = np.pad(seen, ((half, half), (half, half), (0, 0)))
    canvas[:half], canvas[half + len(seen) :] = ground, ground
    canvas[:, :half], canvas[:, half + seen.shape[1] :] = ground, ground
    return canvas[y : y + 2 * half, x : x + 2 * half]


def _empty_corners(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Black that reaches the picture's edge."""
    regions, _ = ndimage.label(pixels.max(2) < BLACK)
    at_edge = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    empty = np.isin(regions, at_edge[at_edge > 0])
    return ndimage.binary_dilation(empty, iterations=SEAM_PX) if empty.any() else empty


def _middle(pixels: NDArray[np.uint8], ground: NDArray[np.float64], um_per_px: float) -> tuple[int, int]:
    """The pixel x, y in the middle of the densest purple."""
    density = np.log10(np.maximum(ground, 1) / np.maximum(pixels, 1)) @ np.array(PURPLE)
    purple = density.clip(0, DENSEST)
    peak = np.unravel_index(ndimage.gaussian_filter(purple, SPREAD_UM / um_per_px).argmax(), purple.shape)
    rows, columns = np.indices(purple.shape)
    near = np.hypot(rows - peak[0], columns - peak[1]) < NUCLEUS_UM / um_per_px
    weight = purple * (near & (purple > LEAST_PURPLE))
    if not weight.any():
        return int(peak[1]), int(peak[0])
    return round(float(np.average(columns, weights=weight))), round(float(np.average(rows, weights=weight)))
