"""Rendered things that are no white cell, and that a detector may take for one: debris and giant platelets."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label, sum_labels

from wbc.datasets.augment import add_debris
from wbc.datasets.crops import PATCH_PX, PATCH_UM, Crops, patch
from wbc.synth.smear import SmearSettings, draw_stain, render_field
from wbc.taxonomy import NOT_A_WHITE_CELL

_UM_PER_PX = PATCH_UM / PATCH_PX
_FIELD = SmearSettings(
    height_px=3 * PATCH_PX,
    width_px=3 * PATCH_PX,
    um_per_px=_UM_PER_PX,
    white_cells_per_field=(0, 0),
    platelets_per_field=(3, 8),
    red_cells_per_mm2=(2_000.0, 14_000.0),
)
_GIANT = (1.5, 3.0)  # times a platelet's size
_VISIBLE_LEVELS, _VISIBLE_UM2 = 60, 4.0


def render_debris(crops: int, seed: int) -> Crops:
    """So many crops of what is no white cell, each under a stain of its own: pieces of debris, and giant platelets."""
    rng = np.random.default_rng(seed)
    draw: tuple[Callable[[np.random.Generator], NDArray[np.uint8] | None], ...] = (_piece_of_debris, _giant_platelet)
    patches: list[NDArray[np.uint8]] = []
    while len(patches) < crops:
        drawn = draw[len(patches) % 2](rng)
        if drawn is not None:
            patches.append(drawn)
    names = tuple(f"rendered debris {i} of seed {seed}" for i in range(crops))
    return Crops(np.stack(patches), (NOT_A_WHITE_CELL,) * crops, names)


def _giant_platelet(rng: np.random.Generator) -> NDArray[np.uint8] | None:
    """A platelet of a field seen closer, with what lies around it; None where none has room."""
    pixels, boxes, kinds = render_field(_FIELD, rng, draw_stain(rng))
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    for (x, y), kind in zip(middles.tolist(), kinds, strict=True):
        if kind == "platelet" and _has_room(x, y, pixels):
            return patch(pixels, x, y, _UM_PER_PX * rng.uniform(*_GIANT))
    return None


def _piece_of_debris(rng: np.random.Generator) -> NDArray[np.uint8] | None:
    """A place on the largest piece that `add_debris` draws on a field; None where none is large or has room."""
    pixels, _, _ = render_field(_FIELD, rng, draw_stain(rng))
    dirty = add_debris(pixels, rng)
    pieces, n = label(np.abs(dirty.astype(int) - pixels).sum(2) > _VISIBLE_LEVELS)
    areas = np.asarray(sum_labels(pieces > 0, pieces, range(1, n + 1)))
    if not n or areas.max() * _UM_PER_PX**2 < _VISIBLE_UM2:
        return None
    ys, xs = np.nonzero(pieces == 1 + areas.argmax())
    i = int(rng.integers(len(ys)))
    x, y = float(xs[i]), float(ys[i])
    return patch(dirty, x, y, _UM_PER_PX) if _has_room(x, y, pixels) else None


def _has_room(x: float, y: float, pixels: NDArray[np.uint8]) -> bool:
    """Whether the window around a place lies in the field."""
    reach, (height, width) = PATCH_PX / 2, pixels.shape[:2]
    return bool(reach <= x <= width - reach and reach <= y <= height - reach)
