"""Whether the first look can be trusted on a field: what it leaves of the white cells that a whole look finds."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wbc.cells.detect import detect, sought_alone
from wbc.cells.geometry import box_iou
from wbc.cells.tiles import TileSettings
from wbc.models.registry import LoadedModel
from wbc.types import Detections

SAME_IOU = 0.5
LOWEST_SCORE = 0.05


def missed(
    pixels: NDArray[np.uint8], model: LoadedModel, um_per_px: float, min_score: float, settings: TileSettings
) -> Detections:
    """The cells sought, of at least `min_score`, that a whole look finds in a field uint8 (H,W,3) and windows do not.

    A cell that windows show with any score, however low, is not missed.
    """
    whole = sought_alone(
        detect([pixels], model, um_per_px, min_score, replace(settings, sought="all"))[0], model, settings.sought
    )
    found = detect([pixels], model, um_per_px, min(LOWEST_SCORE, min_score), settings)[0]
    is_shown = np.asarray((box_iou(whole.boxes, found.boxes) > SAME_IOU).any(1))
    return whole.take(~is_shown)
