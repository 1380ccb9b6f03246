"""One field's file becomes RGB pixels, a digest of its content, and its scale, or the reason why not."""

import hashlib
import io
import stat
from collections.abc import Callable
from typing import IO
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from upath import UPath
from upath.types import StatResultType

from wbc.types import FieldError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
MIN_FIELD_SIDE_PX = 32
# Just below the size at which Pillow itself refuses, so that one limit holds whatever the format.
MAX_FIELD_PX = 178_000_000
MAX_FIELD_BYTES = 2 << 30
UM_PER_PX_RANGE = (0.01, 2.0)
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Opened by their plugins and not by Image.open: that would try every format Pillow knows on a stranger's bytes, and
# would warn of pictures over half the limit.
_OPENERS: tuple[tuple[tuple[bytes, ...], Callable[[IO[bytes]], ImageFile.ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), jpeg_factory),
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    (TIFF_MAGIC, TiffImageFile),
    ((b"BM",), BmpImageFile),
)
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_DESCRIPTION, _TIFF_SAMPLE_FORMAT = 258, 262, 270, 339
_TIFF_X_RESOLUTION, _TIFF_Y_RESOLUTION, _TIFF_RESOLUTION_UNIT = 282, 283, 296
_UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}
_UM_PER_OME_UNIT = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3}


def status(path: UPath) -> StatResultType:
    try:
        found = path.stat()
    except Exception as error:  # every fsspec back end has its own
        raise FieldError(path.name, f"cannot be read: {words(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FieldError(path.name, "is not a regular file")
    return found


def words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def field_content(path: UPath) -> bytes:
    """The bytes of a field's file, read once: for `digest` and `decode_field` alike.

    Raises FieldError where it cannot be read, is empty, or is larger than MAX_FIELD_BYTES.
    """
    size = status(path).st_size
    if size > MAX_FIELD_BYTES:
        raise FieldError(path.name, f"has {size} bytes, more than {MAX_FIELD_BYTES}")
    try:
        content = path.read_bytes()
    except Exception as error:  # every fsspec back end has its own
        raise FieldError(path.name, f"cannot be read: {words(error)}") from error
    if not content:
        raise FieldError(path.name, "is empty")
    return content


def digest(content: bytes) -> str:
    """SHA-256 of a field's file, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_field(path: UPath) -> NDArray[np.uint8]:
    """The pixels of a field, as `decode_field` gives them. Raises FieldError."""
    return decode_field(path.name, field_content(path))


def decode_field(name: str, content: bytes) -> NDArray[np.uint8]:
    """Pixels uint8 (H, W, 3), RGB, of a JPEG, PNG, TIFF (its first page) or BMP of any mode, oriented as EXIF says.

    Transparent pixels are laid over white, as the empty parts of a smear are. Grey of 12 and 16 bits is scaled by its
    full range. Grey of 32 bits, integer or float, does not tell its range: the smallest of 1 (float only), 255, 65535
    and the type's largest value that holds every pixel is taken, else the largest pixel; negative values are black.
    Raises FieldError for whatever is no whole picture, for a side below 32 px, and, before a pixel is decoded, for
    more than MAX_FIELD_PX.
    """
    try:
        picture = _open_picture(name, content)
        picture.load()
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return np.array(_to_rgb(name, ImageOps.exif_transpose(picture)))
        return np.array(_to_rgb(name, picture))
    except FieldError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on broken bytes
        raise FieldError(name, f"cannot be decoded: {words(error)}") from error


def _open_picture(name: str, content: bytes) -> ImageFile.ImageFile:
    """The picture with its header read and found acceptable, no pixel decoded."""
    opener = next((opener for magic, opener in _OPENERS if content.startswith(magic)), None)
    if opener is None:
        raise FieldError(name, "is no JPEG, PNG, TIFF or BMP image")
    picture = opener(io.BytesIO(content))
    width, height = picture.size
    if width * height > MAX_FIELD_PX:
        raise FieldError(name, f"is {width}×{height} px, more than {MAX_FIELD_PX // 1_000_000} megapixels")
    if min(width, height) < MIN_FIELD_SIDE_PX:
        raise FieldError(name, f"is {width}×{height} px, less than {MIN_FIELD_SIDE_PX} px a side")
    # A copy that was cut off but keeps its length, padded with zeros, decodes without an error, to grey.
    if opener is jpeg_factory and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        raise FieldError(name, "is truncated: the JPEG has no end")
    return picture


def _to_rgb(name: str, picture: Image.Image) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = Image.fromarray(_deep_grey_to_8_bits(name, picture))
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def _deep_grey_to_8_bits(name: str, picture: Image.Image) -> NDArray[np.uint8]:
    """Grey (H, W) of more than 8 bits, scaled to 0..255."""
    tags = picture.tag_v2 if isinstance(picture, TiffImageFile) else {}
    values: NDArray[np.uint16 | np.int32 | np.uint32 | np.float32] = np.asarray(picture)
    is_float = picture.mode == "F"
    if is_float and not np.isfinite(values).all():
        raise FieldError(name, "has pixels that are no numbers")
    if picture.mode == "I" and tags.get(_TIFF_SAMPLE_FORMAT, (2,))[0] == 1:
        values = values.view(np.uint32)
    bits = tags.get(_TIFF_BITS, (32 if picture.mode == "I" else 16,))[0]
    if not is_float and bits < 32:
        full = float(2 ** (bits - (picture.mode == "I")) - 1)
    else:
        largest = float(values.max())
        ranges = (1.0 if is_float else 255.0, 255.0, 65_535.0, 2.0**31 - 1, 2.0**32 - 1)
        full = next((end for end in ranges if largest <= end), largest)
    scaled: NDArray[np.uint8] = np.rint(np.clip(values * np.float32(255.0 / full), 0, 255)).astype(np.uint8)
    # Pillow turns white-is-zero round for 8 bits and fewer alone.
    return np.invert(scaled) if tags.get(_TIFF_PHOTOMETRIC) == 0 else scaled


def um_per_px_of(content: bytes) -> float | None:
    """µm per px as a TIFF's header tells it (OME-XML, else the resolution tags), None where it tells nothing likely.

    Only 0.01 to 2 µm per px is likely for a smear: the 72, 96 or 300 dpi that programs write unasked are far beyond.
    """
    if not content.startswith(TIFF_MAGIC):
        return None
    try:
        tags = dict(TiffImageFile(io.BytesIO(content)).tag_v2)
        scale = _ome_um_per_px(str(tags.get(_TIFF_DESCRIPTION, "")))
        if scale is None:
            per_unit, per_unit_y = float(tags[_TIFF_X_RESOLUTION]), float(tags[_TIFF_Y_RESOLUTION])
            is_square = abs(per_unit - per_unit_y) <= 0.01 * per_unit
            scale = _UM_PER_RESOLUTION_UNIT[int(tags.get(_TIFF_RESOLUTION_UNIT, 2))] / per_unit if is_square else None
    except Exception:  # a header that cannot be understood tells nothing; reading the field will say what is wrong
        return None
    return scale if scale is not None and UM_PER_PX_RANGE[0] <= scale <= UM_PER_PX_RANGE[1] else None


def _ome_um_per_px(description: str) -> float | None:
    """PhysicalSizeX of the first image of OME-XML, in µm; None where `description` is none or does not say."""
    if "OME" not in description:
        return None
    try:
        # Pillow reads a TIFF's text as Latin-1; OME-XML is UTF-8.
        pixels = ElementTree.fromstring(description.encode("latin-1")).find(".//{*}Pixels")
        size = {} if pixels is None else pixels.attrib
        return float(size["PhysicalSizeX"]) * _UM_PER_OME_UNIT[size.get("PhysicalSizeXUnit", "µm")]
    except (ElementTree.ParseError, KeyError, ValueError):
        return None
