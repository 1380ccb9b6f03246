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
# A line of zeros of one pixel's height and this length is a hole shorter than a row, of 512 bytes or more.
LINE_PX, CONTENT_PART_BESIDE_LINE = 80, 0.9
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
    nearly. A picture that is black altogether, or whose last eighth is when its first row is not, has lost it too, and
    so has one with a shorter run of zeros that no drawn line explains.
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
    for start, stop in _lines(flat, width):
        raise FieldError(name, f"is damaged: {stop - start} pixels are missing in row {start // width}")


def _runs(flat: NDArray[np.generic], fill: int, width: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of at least `width` pixels of `flat` (N,S) that are `fill` in every sample."""
    step = max(1, width // 4)  # four of these samples lie in every such run
    for first, end in _streaks((flat[::step] == fill).all(1), 4 if step > 1 else width):
        yield from _exact_runs(flat, fill, (first * step, end * step), width, width)


def _lines(flat: NDArray[np.generic], width: int) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of at least LINE_PX zeros with content right above and below it.

    Lines that somebody drew go from side to side, or have a corner at an end: they are none.
    """
    step = LINE_PX // 4
    one = flat[:, 0]  # of the samples, to find the places by
    middle = one[width:-width:step] == 0
    above, below = (one[start::step][: len(middle)] != 0 for start in (0, 2 * width))
    for first, end in _streaks(middle & above & below, 3):
        for start, stop in _exact_runs(flat, 0, (width + first * step, width + end * step), LINE_PX, width):
            shifts = [d for d in (-width, width) if start + d >= 0 and stop + d <= len(flat)]
            beside = [(flat[start + d : stop + d] != 0).any(1) for d in shifts]
            is_drawn = start % width == stop % width == 0 or not all(row[0] and row[-1] for row in beside)
            if not is_drawn and min(row.mean() for row in beside) >= CONTENT_PART_BESIDE_LINE:
                yield start, stop


def _streaks(holds: NDArray[np.bool_], least: int) -> list[tuple[int, int]]:
    """Start and stop of each streak of at least `least` that hold."""
    padded = np.concatenate([[False], holds, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)
    return [(int(first), int(end)) for first, end in edges if end - first >= least]


def _exact_runs(
    flat: NDArray[np.generic], fill: int, about: tuple[int, int], least: int, reach: int
) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of at least `least` pixels that starts and stops within `reach` of these pixels."""
    before, after = max(0, about[0] - reach), min(len(flat), about[1] + reach)
    others = np.flatnonzero((flat[before:after] != fill).any(1)) + before
    bounds = np.concatenate([[before - 1], others, [after]])
    for i in np.flatnonzero(np.diff(bounds) > least):
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
