"""Hue adjustment (ASAE-Net 2020, section 3.5): the hues of every crop spread over one range."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HALF_DEGREES = 180  # the scale of OpenCV's 8-bit hue, in which the paper's 125 to 155 are violet to magenta: a guess


def adjust_hue(crops: NDArray[np.uint8], target: tuple[float, float]) -> NDArray[np.uint8]:
    """Crops uint8 (N,S,S,3) whose hues are moved linearly to `target` (Min, Max), in half degrees (equation 11).

    A crop's own min and max are those of all its pixels, grey ones (hue 0) too: the paper leaves none out. A crop of a
    single hue has no range to spread; it gets Min. Raises ValueError unless 0 <= Min <= Max < 180.
    """
    least, most = target
    if not 0 <= least <= most < HALF_DEGREES:
        raise ValueError(f"hue is {list(target)}: it runs from Min to Max within 0 and {HALF_DEGREES}, half degrees")
    return np.stack([_adjusted(crop, least, most) for crop in crops]) if len(crops) else crops


def _adjusted(crop: NDArray[np.uint8], least: float, most: float) -> NDArray[np.uint8]:
    hsv = np.array(Image.fromarray(crop).convert("HSV"))
    hsv[..., 0] = np.rint(spread(hsv[..., 0] * (HALF_DEGREES / 256), least, most) * (256 / HALF_DEGREES))
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def spread(hue: NDArray[np.floating], least: float, most: float) -> NDArray[np.floating]:
    """Equation 11: hues moved linearly so that the lowest is `least` and the highest `most`."""
    low, high = hue.min(), hue.max()
    return np.asarray((most - least) / max(high - low, 1e-9) * (hue - low) + least)
