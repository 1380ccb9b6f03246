"""A JPEG's pixels, where every warning of its decoder is a failure, and so is a shift of its colours from one block on.

libjpeg reads on over damage and warns; Pillow, OpenCV and imagecodecs keep the warning to themselves, simplejpeg tells.
A flipped bit or a short hole may pass without one: Huffman codes fall into step again. But a block stores its mean as
the difference from the block before it (ITU T.81, F.1.2.1), so that all blocks behind the damage are off by one amount.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wbc.types import FieldError

# Height and width of what is stored together, by the sampling of the colours; others are not looked at for shifts.
_UNIT_PX = {"Gray": (8, 8), "444": (8, 8), "422": (8, 16), "440": (16, 8), "420": (16, 16), "411": (8, 32)}
_LEAST_UNITS = 32
# Undamaged fields of 2,560, 640 and 360 px show up to 2, 2.2 and 5.3 levels; damaged ones mostly over 7.
SHIFT_LEVELS, _OF_WIDTH_PX = 6.0, 640
_LARGEST_STEP = 40  # of one pixel: the rims of cells are no shift


def decode_jpeg(name: str, content: bytes) -> NDArray[np.uint8] | None:
    """Pixels uint8 (H,W,3), RGB, of a JPEG of grey or three colours; None for one whose sampling is not read here.

    Raises FieldError where it decodes with a warning, or its colours shift: it is cut off or damaged.
    """
    pixels = _decode(name, content, "RGB", 1)
    if pixels is not None:
        _check_no_shift(name, pixels, simplejpeg.decode_jpeg_header(content)[3])
    return pixels


def check_jpeg(name: str, content: bytes) -> None:
    """Raises FieldError where a JPEG decodes with a warning. All its bits are read, but for an eighth of its size."""
    _decode(name, content, "GRAY", 8)


def check_strip(name: str, content: bytes) -> None:
    """Raises FieldError as `decode_jpeg` for a JPEG of some rows of a field, over its whole width."""
    if decode_jpeg(name, content) is None:
        check_jpeg(name, content)


def _decode(name: str, content: bytes, colours: str, reduction: int) -> NDArray[np.uint8] | None:
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, colours, min_factor=reduction))
    except ValueError as error:
        try:
            simplejpeg.decode_jpeg(content, colours, min_factor=reduction, strict=False)
        except ValueError:
            return None
        warning = str(error).rpartition("(): ")[2]
        raise FieldError(name, f"is truncated or damaged: {warning}") from error


def _check_no_shift(name: str, pixels: NDArray[np.uint8], sampling: str) -> None:
    """Raises FieldError where all that follows one block, row by row, is brighter or darker than what precedes it.

    Such a shift is an edge with one step in it: from its block on it lies above the block's row, before it below.
    """
    height, width = _UNIT_PX.get(sampling, (8, pixels.shape[1]))
    n = pixels.shape[1] // width
    if n < _LEAST_UNITS or pixels.shape[0] < 3 * height:
        return
    rows = np.arange(height, pixels.shape[0], height)
    steps = np.subtract(pixels[rows, : n * width], pixels[rows - 1, : n * width], dtype=np.int16)
    steps = np.clip(steps, -_LARGEST_STEP, _LARGEST_STEP).reshape(len(rows), n, width, 3)
    sums = np.einsum("rnwc->rnc", steps).cumsum(1, dtype=np.int32) / width  # a fifth of `sum`'s time
    columns = np.arange(n // 16, n - n // 16)
    before = sums[:, columns - 1] / columns[:, None]
    behind = (sums[:, -1:] - sums[:, columns - 1]) / (n - columns)[:, None]
    above, below = behind[:-1], before[1:]
    shift = np.where(above * below > 0, np.minimum(abs(above), abs(below)), 0)
    shift -= np.maximum(abs(before[:-1]), abs(behind[1:]))
    if shift.max() > SHIFT_LEVELS * max(1.0, (_OF_WIDTH_PX / pixels.shape[1]) ** 0.5):
        row, column, _ = np.unravel_index(shift.argmax(), shift.shape)
        where = f"row {rows[row]}, column {columns[column] * width}"
        raise FieldError(name, f"is damaged: from {where} on all colours are off by {shift.max():.0f} levels or more")
