"""A folder of images becomes a `Slide`; one field's file becomes RGB pixels, a digest of its content, and its scale."""

import errno
import hashlib
import io
import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
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

from wbc.types import FieldError, Slide

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
MIN_FIELD_SIDE_PX = 32
# Just below the size at which Pillow itself refuses, so that one limit holds whatever the format.
MAX_FIELD_PX = 178_000_000
MAX_FIELD_BYTES = 2 << 30
MAX_ID_BYTES = 180
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
# What object stores call the time (or the version) of an object; fsspec has no common name for it.
_MODIFIED_KEYS = ("mtime", "LastModified", "last_modified", "updated", "ETag", "etag", "created")


@dataclass(frozen=True, slots=True)
class FieldStamp:
    """What stands for a field's content while it does not change: name, size in bytes, and time of change.

    `modified` is an opaque string to compare, "" where the file system tells no time.
    """

    name: str
    size: int
    modified: str


def safe_name(path: str) -> str:
    """A relative path as one file name of at most 180 bytes; no two paths share a name.

    ASCII letters and digits, `-_. ` and letters and digits of other scripts stay, all else is percent-encoded as
    UTF-8, and so are a leading `.`, `_` or space (Parquet readers pass over such files) and a trailing `.` or space.
    A name that would be too long ends in `~` and 16 hexadecimal digits of its SHA-256; `~` occurs nowhere else.
    Raises ValueError for an empty path.
    """
    if not path:
        raise ValueError("an empty path has no name")
    chars = [c if c.isalnum() or c in "-_. " else _percent(c) for c in path]
    if chars[0] in "._ ":
        chars[0] = _percent(chars[0])
    if chars[-1] in ". ":
        chars[-1] = _percent(chars[-1])
    name = "".join(chars)
    encoded = name.encode()
    if len(encoded) <= MAX_ID_BYTES:
        return name
    return encoded[: MAX_ID_BYTES - 17].decode(errors="ignore") + "~" + hashlib.sha256(encoded).hexdigest()[:16]


def _percent(char: str) -> str:
    # A local file name that is no UTF-8 reaches Python as lone surrogates.
    return "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass"))


def discover(root: UPath) -> list[Slide]:
    """The slides at and below `root`, sorted by `slide_id`: every folder that directly holds images is one.

    `slide_id` is the path below `root` as `safe_name` writes it; for images in `root` itself the root's own name, or
    `%2E` where there are other slides. A folder with neither images nor folders is a slide without fields, and so is
    one that cannot be read (which is logged). Hidden files and folders are passed over, and folders of results (they
    hold `.wbc`). Links are followed, but a local folder is one slide however often it is linked: its real place
    names it, else the first link; the others are logged. Raises FileNotFoundError or NotADirectoryError.
    """
    if not root.exists():
        raise FileNotFoundError(errno.ENOENT, "no such folder of slides", str(root))
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "slides are read from a folder, this is a file", str(root))
    found = dict(_walk(root))
    ids = {parts: safe_name("/".join(parts) or ".") for parts in found}
    if list(found) == [()] and (name := root.resolve().name):
        ids[()] = safe_name(name)
    return sorted((Slide(ids[parts], paths) for parts, paths in found.items()), key=lambda slide: slide.slide_id)


def _walk(root: UPath) -> Iterator[tuple[tuple[str, ...], tuple[UPath, ...]]]:
    """Path parts below `root` and field paths of every slide."""
    seen: set[str] = set()
    folders: deque[tuple[UPath, tuple[str, ...]]] = deque([(root, ())])
    links: deque[tuple[UPath, tuple[str, ...]]] = deque()
    while folders or links:
        folder, parts = folders.popleft() if folders else links.popleft()
        if _is_local(folder):
            real = os.path.realpath(folder.path)
            if real in seen:
                logger.warning("%r is %r again and is not counted twice", str(folder), real)
                continue
            seen.add(real)
        try:
            entries = _entries(folder)
        except OSError as error:
            logger.warning("%r cannot be read: %s", str(folder), error.strerror or error)
            yield parts, ()
            continue
        if parts and any(name == ".wbc" for name, _, _ in entries):
            continue
        shown = [entry for entry in entries if not entry[0].startswith(".")]
        images = sorted(n for n, is_folder, _ in shown if not is_folder and n.lower().endswith(IMAGE_SUFFIXES))
        below = [entry for entry in shown if entry[1]]
        if images or not below:
            yield parts, tuple(folder / name for name in images)
        for name, _, is_link in below:
            (links if is_link else folders).append((folder / name, (*parts, name)))


def _entries(folder: UPath) -> list[tuple[str, bool, bool]]:
    """Name, whether a folder, and whether a link, of everything in `folder`, sorted by name."""
    if _is_local(folder):
        with os.scandir(folder.path) as entries:
            # os.path.isdir takes a link that leads nowhere, or to itself, for no folder; DirEntry.is_dir raises.
            return sorted((e.name, os.path.isdir(e.path), e.is_symlink()) for e in entries)
    own = folder.path.rstrip("/")
    paths = [
        (entry["name"].rstrip("/"), entry["type"] == "directory") for entry in folder.fs.ls(folder.path, detail=True)
    ]
    # An object store lists a folder's own placeholder among what it holds.
    return sorted((path.rsplit("/", 1)[-1], is_folder, False) for path, is_folder in paths if path != own)


def _is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def stamp(path: UPath) -> FieldStamp:
    """The stamp of a field, without opening it. Raises FieldError where there is no such file or no leave to look.

    Taken before the content is read, it can only be older than the content, never newer.
    """
    found = _status(path)
    if _is_local(path):
        return FieldStamp(path.name, found.st_size, str(found.st_mtime_ns))
    known = path.fs.info(path.path)
    modified = next((known[key] for key in _MODIFIED_KEYS if known.get(key)), "")
    text = modified.isoformat() if isinstance(modified, datetime) else str(modified)
    return FieldStamp(path.name, found.st_size, text)


def _status(path: UPath) -> StatResultType:
    try:
        found = path.stat()
    except Exception as error:  # every fsspec back end has its own
        raise FieldError(path.name, f"cannot be read: {_words(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise FieldError(path.name, "is not a regular file")
    return found


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def field_content(path: UPath) -> bytes:
    """The bytes of a field's file, read once: for `digest` and `decode_field` alike.

    Raises FieldError where it cannot be read, is empty, or is larger than MAX_FIELD_BYTES.
    """
    size = _status(path).st_size
    if size > MAX_FIELD_BYTES:
        raise FieldError(path.name, f"has {size} bytes, more than {MAX_FIELD_BYTES}")
    try:
        content = path.read_bytes()
    except Exception as error:  # every fsspec back end has its own
        raise FieldError(path.name, f"cannot be read: {_words(error)}") from error
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
        raise FieldError(name, f"cannot be decoded: {_words(error)}") from error


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


def field_um_per_px(path: UPath) -> float | None:
    """µm per px as a TIFF's header tells it (OME-XML, else the resolution tags), None where it tells nothing likely.

    Only 0.01 to 2 µm per px is likely for a smear: the 72, 96 or 300 dpi that programs write unasked are far beyond.
    """
    try:
        _status(path)
        with path.open("rb") as file:
            if not file.read(4).startswith(TIFF_MAGIC):
                return None
            file.seek(0)
            tags = dict(TiffImageFile(file).tag_v2)
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
