"""A JPEG's pixels, where every warning of its decoder is a failure.

libjpeg reads on over damage and warns; Pillow, OpenCV and imagecodecs keep the warning to themselves, simplejpeg tells.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wbc.types import FieldError


def decode_jpeg(name: str, content: bytes) -> NDArray[np.uint8] | None:
    """Pixels uint8 (H,W,3), RGB, of a JPEG of grey or three colours; None for one whose sampling is not read here.

    Raises FieldError where it decodes with a warning: it is cut off or damaged.
    """
    return _decode(name, content, "RGB", 1)


def check_jpeg(name: str, content: bytes) -> None:
    """Raises FieldError where a JPEG decodes with a warning. All its bits are read, but for an eighth of its size."""
    _decode(name, content, "GRAY", 8)


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
