"""Box arithmetic and the tile grid, in field pixels."""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


def box_area(boxes: Boxes) -> NDArray[np.float32]:
    """Areas float32 (N,) of boxes (N,4) x0,y0,x1,y1."""
    area: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area


def box_iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Intersection over union float32 (N,M) of boxes (N,4) and (M,4); 0 where both have no area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(2)
    iou: NDArray[np.float32] = overlap / np.maximum(box_area(a)[:, None] + box_area(b)[None] - overlap, 1e-9)
    return iou
