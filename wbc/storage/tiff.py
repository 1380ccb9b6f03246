"""A TIFF's one picture, its axes read and never guessed, and its scale.

tifffile reads the structure, imagecodecs decodes. They are imported where a TIFF is at hand: no other field needs them.
"""

import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wbc.storage import ome
from wbc.storage.checks import check_no_hole, check_size
from wbc.storage.jpeg import check_jpeg, check_strip
from wbc.types import FieldError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

# What tifffile logs of a broken file is not for the terminal: the field fails with its reason.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
_ORIENTATION, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 274, 282, 283, 296
_UNCOMPRESSED, _JPEG = 1, 7
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_ASSOCIATED_ALPHA = 1
LIKELY_BITS = (8, 10, 12, 14, 16, 31, 32)  # of what a camera, or a program after it, puts into a sample
_OTHER_VIEWS = ("Thumbnail", "Label", "Macro")  # what Aperio's scanners add to the picture of the slide
_UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 10_000.0}
_UM_PER_IMAGEJ_UNIT = {
    "micron": 1.0,
    "microns": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
    "inch": 25_400.0,
}


def open_tiff(name: str, content: bytes) -> tuple[Image.Image, int]:
    """The picture of a TIFF, 8 bits a sample, in the mode of Pillow's that has its colours; and its orientation (EXIF).

    A pyramid gives its full resolution. Three channels stored one after the other are red, green and blue. Raises
    FieldError where the file holds several pictures, a stack or other channels, or is damaged; else what tifffile and
    imagecodecs raise.
    """
    with _tiff_file(content) as tiff:
        series = _only_picture(name, tiff)
        page = series.keyframe
        check_size(name, page.imagewidth, page.imagelength)
        for part in series.pages:
            _check_whole(name, content, part, page)
        samples = _samples_last(name, tiff, series)
        is_turned = page.photometric == _WHITE_IS_ZERO and samples.dtype.kind == "u"
        check_no_hole(name, np.invert(samples) if is_turned else samples)
        return _picture(name, page, samples), int(page.tags.valueof(_ORIENTATION, 1))


def tiff_um_per_px(content: bytes) -> float | None:
    """µm per px as OME-XML, ImageJ or the resolution tags tell it; None where they do not."""
    with _tiff_file(content) as tiff:
        page = _only_picture("", tiff).keyframe
        scale = ome.um_per_px(_ome_pixels(tiff, page))
        if scale is not None:
            return scale
        per_unit, per_unit_y = (_ratio(page.tags.valueof(tag)) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
        if not per_unit or abs(per_unit - per_unit_y) > 0.01 * per_unit:
            return None
        unit = int(page.tags.valueof(_RESOLUTION_UNIT, 2))
        um_per_unit = _UM_PER_RESOLUTION_UNIT.get(unit)
        if tiff.is_imagej and tiff.imagej_metadata:
            imagej_unit = str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ").lower().removesuffix("s")
            um_per_unit = _UM_PER_IMAGEJ_UNIT.get(imagej_unit, um_per_unit)
        return um_per_unit / per_unit if um_per_unit else None


def to_8_bits(name: str, values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Samples of any type scaled to 0..255: of 8 bits and fewer, of 12 and the like by their full range.

    Samples of 16 bits and more and floats do not tell their range, as cameras of 10, 12 and 14 bits are kept in 16: the
    smallest of 1 (floats only), the largest numbers of 8, 10, 12, 14, 16, 31 and 32 bits that holds every sample is
    taken, else the largest sample. A smear's ground is bright: what seems dark by the full range is of fewer bits.
    Negative samples are black. Raises FieldError where some are not numbers.
    """
    if values.dtype == np.uint8 and bits == 8:
        return values
    is_float = np.issubdtype(values.dtype, np.floating)
    if is_float and not np.isfinite(values).all():
        raise FieldError(name, "has pixels that are not numbers")
    is_signed = np.issubdtype(values.dtype, np.signedinteger)
    if not is_float and bits < 16:
        full = float(2 ** (bits - is_signed) - 1)
    else:
        largest = float(values.max())
        likely = sorted({*LIKELY_BITS, bits - 1}) if is_signed else LIKELY_BITS
        ends = ([1.0] if is_float else []) + [2.0**n - 1 for n in likely]
        full = next((end for end in ends if largest <= end), largest)
    result: NDArray[np.uint8] = np.rint(np.clip(values * np.float32(255.0 / full), 0, 255)).astype(np.uint8)
    return result


def deep_to_8_bits(name: str, samples: NDArray[Any], bits: int, mode: str) -> NDArray[np.uint8]:
    """`to_8_bits` of samples (H,W,S) in the order of a mode of Pillow's: colours, and alpha by a range of its own."""
    if mode[-1] not in "aA":
        return to_8_bits(name, samples, bits)
    parts = (to_8_bits(name, part, bits) for part in (samples[..., :-1], samples[..., -1:]))
    return np.concatenate([*parts], 2)


def _tiff_file(content: bytes) -> "TiffFile":
    from tifffile import TiffFile

    tiff = TiffFile(io.BytesIO(content), _multifile=False)  # an OME-TIFF may name other files; a field is one file
    try:
        _ = tiff.series
    except Exception:  # tifffile's on OME-XML that cannot be understood: then its pages are what they are without it
        return TiffFile(io.BytesIO(content), is_ome=False)
    return tiff


def _ratio(value: Any) -> float:
    numerator, denominator = value if isinstance(value, tuple) else (value, 1)
    return numerator / denominator if value is not None and denominator else 0.0


def _ome_pixels(tiff: "TiffFile", page: "TiffPage") -> Any:
    return ome.pixels_elements(tiff.pages.first.description, page.imagewidth, page.imagelength)


def _only_picture(name: str, tiff: "TiffFile") -> "TiffPageSeries":
    """The one picture of the file: pages that are marked as smaller copies, masks or views of the slide are none."""
    pictures = [s for s in tiff.series if not (s.keyframe.is_reduced or s.keyframe.is_mask or s.name in _OTHER_VIEWS)]
    if not pictures:
        raise FieldError(name, "cannot be decoded: the TIFF holds no picture")
    if len(pictures) > 1:
        sizes = ", ".join(f"{s.keyframe.imagewidth}×{s.keyframe.imagelength} px" for s in pictures[:4])
        raise FieldError(name, f"holds {len(pictures)} pictures ({sizes}): it does not say which one is the field")
    series = pictures[0]
    planes = [f"{n} along {axis}" for axis, n in _axes(series).items() if axis not in "YXSC"]
    if planes:
        raise FieldError(name, f"is a stack ({', '.join(planes)}), not one picture")
    if any(part is None for part in series.pages):
        raise FieldError(name, "is damaged: pages are missing")
    return series


def _axes(series: "TiffPageSeries") -> dict[str, int]:
    """The lengths of the series' axes, without those of length one."""
    axes = zip(series.axes, series.shape, strict=True)
    return {axis: n for axis, n in axes if n > 1 or axis in "YX"}


def _check_whole(name: str, content: bytes, part: Any, page: "TiffPage") -> None:
    """Raises FieldError unless all parts of a page are in the file, and its JPEGs decode without a warning."""
    segments = list(zip(part.dataoffsets, part.databytecounts, strict=False))
    if len(segments) < np.prod(page.chunked) or not all(offset and count for offset, count in segments):
        raise FieldError(name, "is damaged: parts of the picture are missing")
    if any(offset + count > len(content) for offset, count in segments):
        raise FieldError(name, "is truncated")
    if page.compression == _UNCOMPRESSED and sum(part.databytecounts) < page.size * page.bitspersample // 8:
        raise FieldError(name, "is damaged: its data are shorter than its picture")
    if page.compression == _JPEG and page.bitspersample == 8:
        tables = page.jpegtables[:-2] if page.jpegtables else b""
        check = check_jpeg if page.is_tiled else check_strip  # tiles of undamaged fields shift by up to nine levels
        for offset, count in segments:
            check(name, tables + content[offset + 2 * bool(tables) : offset + count])


def _samples_last(name: str, tiff: "TiffFile", series: "TiffPageSeries") -> NDArray[Any]:
    """Samples (H,W) or (H,W,S) of the series, channels taken for samples."""
    axes = _axes(series)
    order = "".join(axes)
    samples = series.asarray(maxworkers=1).reshape(list(axes.values()))
    if "C" in axes:
        try:
            if "S" in axes:
                raise ValueError(f"has {axes['C']} channels of {axes['S']} samples, not red, green and blue")
            channels = ome.rgb_order(_ome_pixels(tiff, series.keyframe), axes["C"])
        except ValueError as error:
            raise FieldError(name, str(error)) from error
        samples, order = samples.take(channels, order.index("C")), order.replace("C", "S")
    return np.ascontiguousarray(samples.transpose([order.index(axis) for axis in "YXS" if axis in order]))


def _picture(name: str, page: "TiffPage", samples: NDArray[Any]) -> Image.Image:
    """The samples (H,W) or (H,W,S) as a picture of 8 bits, by what the page says of their colours."""
    height, width = samples.shape[:2]
    mode = _mode(name, page, samples)
    colours = samples.reshape(height, width, -1)[..., : Image.getmodebands(mode)]
    content = (
        colours.astype(np.uint8) if mode in ("P", "PA") else deep_to_8_bits(name, colours, page.bitspersample, mode)
    )
    if page.photometric == _WHITE_IS_ZERO:
        content = np.invert(content)
    picture = Image.frombuffer(mode, (width, height), np.ascontiguousarray(content), "raw", mode, 0, 1)
    if mode in ("P", "PA"):
        colours = np.asarray(page.colormap) >> 8
        picture.putpalette(colours.astype(np.uint8).T.tobytes())
    return picture


def _mode(name: str, page: "TiffPage", samples: NDArray[Any]) -> str:
    """Pillow's mode of samples of that many and that meaning."""
    n = samples.shape[2] if samples.ndim == 3 else 1
    if page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and n == 3 and page.samplesperpixel == 1:
        return "RGB"  # three channels, each a grey page of its own
    colours = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}.get(page.photometric)
    if colours is None or n < colours or (page.photometric == _PALETTE and page.bitspersample > 8):
        raise FieldError(name, f"has colours that cannot be read: {n} samples, photometric {page.photometric!r}")
    mode = {_RGB: "RGB", _PALETTE: "P", _CMYK: "CMYK", _YCBCR: "YCbCr"}.get(page.photometric, "L")
    if page.photometric == _YCBCR and page.compression == _JPEG:
        mode = "RGB"  # converted while it was decoded
    return mode + _alpha(page, n - colours, mode)


def _alpha(page: "TiffPage", extra: int, mode: str) -> str:
    """What to add to a mode for the samples beside the colours: alpha where the first of them is one."""
    kind = page.extrasamples[0] if page.extrasamples else None
    if extra == 0 or mode in ("CMYK", "YCbCr") or kind == 0:
        return ""
    return "a" if kind == _ASSOCIATED_ALPHA and mode in ("L", "RGB") else "A"
