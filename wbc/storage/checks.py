"""What a picture must stand before it is a field: a size that can be counted, and no part of it missing."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wbc.types import FieldError

MIN_FIELD_SIDE_PX = 32
# Just below the size at which Pillow itself refuses, so that one limit holds whatever the format.
MAX_FIELD_PX = 178_000_000
# A run of one colour that starts or ends so far within a row is no border.
STEP_PART, STEP_PX = 1 / 64, 8
# So much of the row's length beside it is content. Bright ground may be the largest value altogether, without a hole.
CONTENT_PART, CONTENT_PART_BESIDE_WHITE = 0.5, 0.9
# From this part of the picture on, rows of zeros at the end are missing content, wherever in a row they start.
BLACK_END_PART = 1 / 8


def check_size(name: str, width: int, height: int) -> None:
    """Raises FieldError for a picture (sides in px) that is too small for any cell, or too large to be decoded."""
    if width * height > MAX_FIELD_PX:
        raise FieldError(name, f"is {width}×{height} px, more than {MAX_FIELD_PX // 1_000_000} megapixels")
    if min(width, height) < MIN_FIELD_SIDE_PX:
        raise FieldError(name, f"is {width}×{height} px, less than {MIN_FIELD_SIDE_PX} px a side")


def check_no_hole(name: str, samples: NDArray[np.generic]) -> None:
    """Raises FieldError where pixels (H,W) or (H,W,S), in the file's order and black at 0, have a hole.

    A file that was cut off and filled up, or lost a block, has a run of zeros (or of the largest value: an erased
    block) of a whole row or more that starts or ends in the middle of a row, with content beside it there and in the
    row before or after. Borders, vignettes and empty corners do not: they start where the row next to them does, or
    nearly. A picture that is black altogether, or whose last eighth is when its first row is not, has lost it too.
    """
    height, width = samples.shape[:2]
    flat = samples.reshape(height * width, -1)
    if samples.dtype == np.bool_:
        return  # two colours: every picture has such runs
    fills = {"u": (0, 2 ** (8 * samples.dtype.itemsize) - 1)}.get(samples.dtype.kind, (0,))
    for fill in fills:
        for start, stop in _runs(flat, fill, width):
            if fill == 0 and stop - start == len(flat):
                raise FieldError(name, "is damaged: every pixel is zero")
            if _breaks_off(flat, fill, start, width) or _breaks_off(flat[::-1], fill, len(flat) - stop, width):
                raise FieldError(name, f"is damaged: content is missing from row {start // width} to {stop // width}")
            at_end = fill == 0 and stop == len(flat) and stop - start >= BLACK_END_PART * len(flat)
            if at_end and (flat[:width] != 0).any() and _content(flat, 0, start - width, start) >= CONTENT_PART:
                raise FieldError(name, f"is damaged: content is missing from row {start // width} on")


def _runs(flat: NDArray[np.generic], fill: int, width: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of at least `width` pixels of `flat` (N,S) that are `fill` in every sample."""
    step = max(1, width // 4)  # four of these samples lie in every such run
    filled = np.concatenate([[False], (flat[::step] == fill).all(1), [False]])
    firsts, ends = np.flatnonzero(filled[1:] != filled[:-1]).reshape(-1, 2).T * step
    for first, end in zip(firsts, ends, strict=True):
        if end - first < min(4 * step, width):
            continue
        before, after = max(0, first - step), min(len(flat), end + 1)
        others = np.flatnonzero((flat[before:after] != fill).any(1)) + before
        bounds = np.concatenate([[before - 1], others, [after]])
        for i in np.flatnonzero(np.diff(bounds) > width):
            yield int(bounds[i]) + 1, int(bounds[i + 1])


def _breaks_off(flat: NDArray[np.generic], fill: int, start: int, width: int) -> bool:
    """Whether the content before pixel `start` ends in mid-row, while the row before goes on."""
    row = start - start % width
    if start < width:
        return start > 0 and fill == 0
    beside, above = (flat[row:start] != fill).any(1).sum(), (flat[start - width : row] != fill).any(1).sum()
    least = CONTENT_PART if fill == 0 else CONTENT_PART_BESIDE_WHITE
    is_step = min(beside, above) >= max(STEP_PX, STEP_PART * width)
    return bool(is_step and _content(flat, fill, start - width, start) >= least)


def _content(flat: NDArray[np.generic], fill: int, start: int, stop: int) -> float:
    """The part of pixels start:stop that are not `fill`."""
    return float((flat[max(0, start) : stop] != fill).any(1).mean()) if stop > max(0, start) else 0.0
