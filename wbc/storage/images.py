"""One field's file becomes RGB pixels, a digest of its content, and its scale, or the reason why not."""

import hashlib
import io
import stat
from collections.abc import Callable
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import jpeg_factory
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from upath import UPath
from upath.types import StatResultType

from wbc.storage.checks import check_no_hole, check_size
from wbc.storage.jpeg import check_jpeg, decode_jpeg
from wbc.storage.tiff import deep_to_8_bits, open_tiff, tiff_um_per_px, to_8_bits
from wbc.types import FieldError, is_likely_scale

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp")
# Pictures that no count reads: whole slides, which are no fields, and formats whose damage no decoder tells of.
UNREAD_SUFFIXES = (
    *(".webp", ".gif", ".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".jxr", ".avif", ".heic", ".heif", ".psd", ".jpe"),
    *(".svs", ".ndpi", ".czi", ".lif", ".nd2", ".vsi", ".mrxs", ".scn", ".vms", ".bif", ".oib", ".oif", ".lsm"),
    *(".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raw", ".pbm", ".pgm", ".ppm", ".pnm"),
    *(".dib", ".tga", ".btf", ".tf8", ".stk", ".zvi", ".flex", ".ims", ".apng", ".exr", ".fits"),
)
MAX_FIELD_BYTES = 2 << 30
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Opened by their plugins and not by Image.open: that would try every format Pillow knows on a stranger's bytes, and
# would warn of pictures over half the limit.
_OPENERS: tuple[tuple[bytes, Callable[[IO[bytes]], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", jpeg_factory),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"BM", BmpImageFile),
)


def status(path: UPath) -> StatResultType:
    try:
        status = path.stat()
    except Exception as error:  # every fsspec back end has its own
        raise FieldError(path.name, f"cannot be read: {words(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise FieldError(path.name, "is not a regular file")
    return status


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
    """Pixels uint8 (H, W, 3), RGB, of a JPEG, PNG, TIFF or BMP of any mode, oriented as EXIF says.

    Transparent pixels are laid over white, as the empty parts of a smear are. Samples of more than 8 bits
    are scaled as `to_8_bits` says. Raises FieldError for whatever is no whole picture or holds several,
    for damage that shows, for a side below 32 px, and, before a pixel is decoded, for more than MAX_FIELD_PX.
    """
    try:
        if content.startswith(TIFF_MAGIC):
            picture, orientation = open_tiff(name, content)
            return _upright(_rgb(picture), orientation)
        return _decode_other(name, content)
    except FieldError:
        raise
    except Exception as error:  # the decoders raise a dozen kinds on broken bytes
        raise FieldError(name, f"cannot be decoded: {words(error)}") from error


def um_per_px_of(content: bytes) -> float | None:
    """µm per px as a TIFF's header tells it (OME-XML, ImageJ, the resolution tags), None where it tells nothing likely.

    Only 0.02 to 2 µm per px is likely for a smear: the 72, 96 or 300 dpi that programs write unasked are far beyond.
    """
    if not content.startswith(TIFF_MAGIC):
        return None
    try:
        scale = tiff_um_per_px(content)
    except Exception:  # a header that cannot be understood tells nothing; reading the field will say what is wrong
        return None
    return scale if scale is not None and is_likely_scale(scale) else None


def camera_of(content: bytes) -> str:
    """Make and model of the camera, as EXIF names them; "" where it names none."""
    opener = next((opener for magic, opener in _OPENERS if content.startswith(magic)), None)
    try:
        exif = (opener or TiffImageFile)(io.BytesIO(content)).getexif()
    except Exception:  # as above
        return ""
    return " ".join(str(exif[tag]).strip() for tag in (ExifTags.Base.Make, ExifTags.Base.Model) if exif.get(tag))


def _decode_other(name: str, content: bytes) -> NDArray[np.uint8]:
    """`decode_field` of all but TIFF."""
    opener = next((opener for magic, opener in _OPENERS if content.startswith(magic)), None)
    if opener is None:
        raise FieldError(name, "is no JPEG, PNG, TIFF or BMP image")
    picture = opener(io.BytesIO(content))
    check_size(name, *picture.size)
    pixels = _jpeg_pixels(name, content, picture) if opener is jpeg_factory else None
    if pixels is None:
        picture.load()
        if opener is BmpImageFile:
            check_no_hole(name, _as_stored(content, picture))
        pixels = _rgb(_shallow(name, content, picture))
    return _upright(pixels, picture.getexif().get(ExifTags.Base.Orientation, 1))


def _jpeg_pixels(name: str, content: bytes, picture: ImageFile.ImageFile) -> NDArray[np.uint8] | None:
    """Pixels uint8 (H,W,3) of a JPEG; None where Pillow must decode it, after what can be told of its damage."""
    if picture.mode in ("RGB", "L"):
        pixels = decode_jpeg(name, content)
        if pixels is not None:
            return pixels
    else:
        check_jpeg(name, content)
    if content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        raise FieldError(name, "is truncated: the JPEG has no end")
    return None


def _shallow(name: str, content: bytes, picture: ImageFile.ImageFile) -> Image.Image:
    """A picture of 8 bits a sample. Of PNG's colours of 16 bits Pillow keeps the upper 8 alone, nothing of 10 bits."""
    if picture.mode.startswith("I"):
        return Image.fromarray(to_8_bits(name, np.asarray(picture), 16))
    if not isinstance(picture, PngImageFile) or content[24] < 16:  # the depth in the header, the first chunk
        return picture
    from imagecodecs import png_decode

    samples = png_decode(content)
    return Image.fromarray(deep_to_8_bits(name, samples, 16, picture.mode), picture.mode)


def _as_stored(content: bytes, picture: Image.Image) -> NDArray[np.uint8]:
    """A BMP's samples in the order of its file: the lowest row first, unless the height is negative."""
    is_bottom_up = int.from_bytes(content[22:26], "little", signed=True) > 0
    return np.asarray(picture)[:: -1 if is_bottom_up else 1]


def _rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels uint8 (H,W,3) of a picture of 8 bits a sample, laid over white where it is transparent."""
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Pixels (H,W,3) turned and flipped as EXIF's orientation, 1 to 8, says; as they are for any other number."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    down, right = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(orientation, (1, 1))
    return np.ascontiguousarray(pixels[::down, ::right])
