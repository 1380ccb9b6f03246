"""Files become pixels, and what is wrong with one is said by name."""

import os
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from upath import UPath

from wbc.storage.checks import MAX_FIELD_PX
from wbc.storage.images import decode_field, digest, field_content, read_field, um_per_px_of
from wbc.types import FieldError

H, W = 40, 60


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    if request.param == "local":
        yield UPath(tmp_path / "slides")
        return
    folder = UPath(f"memory://{uuid4().hex}/slides")
    yield folder
    if folder.exists():
        folder.fs.rm(folder.parent.path, recursive=True)


def smear() -> NDArray[np.uint8]:
    """A smooth picture without symmetry, so that every turn and flip of it is another."""
    y, x = np.mgrid[:H, :W]
    return np.stack([40 + 3 * y, 250 - 2 * x, 100 + y + x], axis=-1).astype(np.uint8)


def encoded(picture: Image.Image, fmt: str, **options: object) -> bytes:
    sink = BytesIO()
    picture.save(sink, fmt, **options)
    return sink.getvalue()


JPEG = encoded(Image.fromarray(smear()), "JPEG", quality=95)


def put(path: UPath, content: bytes = JPEG) -> UPath:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Pixels


def rgb(picture: Image.Image, fmt: str = "PNG", **options: object) -> NDArray[np.uint8]:
    pixels = decode_field("f", encoded(picture, fmt, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    return pixels


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP"])
def test_colour_comes_back_as_it_is(fmt: str) -> None:
    np.testing.assert_array_equal(rgb(Image.fromarray(smear()), fmt), smear())


@pytest.mark.parametrize(("mode", "fmt"), [("L", "JPEG"), ("L", "TIFF"), ("1", "PNG"), ("P", "BMP"), ("P", "PNG")])
def test_grey_and_palettes_become_rgb(mode: str, fmt: str) -> None:
    picture = Image.fromarray(smear()).convert(mode)
    expected = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(rgb(picture, fmt) - expected).max() <= (4 if fmt == "JPEG" else 0)


@pytest.mark.parametrize("fmt", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(fmt: str) -> None:
    picture = Image.fromarray(smear()).convert("CMYK")
    options = {"quality": 95, "subsampling": 0} if fmt == "JPEG" else {}
    assert np.abs(rgb(picture, fmt, **options) - smear().astype(int)).mean() < 3


@pytest.mark.parametrize(("mode", "fmt"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "TIFF"), ("PA", "TIFF")])
def test_transparent_pixels_are_white(mode: str, fmt: str) -> None:
    picture = Image.fromarray(smear()).convert("RGBA")
    picture.putalpha(Image.fromarray(np.where(np.arange(W) < W // 2, 0, 255).astype(np.uint8)[None].repeat(H, 0)))
    pixels = rgb(picture.convert(mode), fmt)
    assert (pixels[:, : W // 2] == 255).all()
    assert pixels[:, W // 2 :].mean() < 220


def test_premultiplied_grey_tiff() -> None:
    content = encoded(Image.new("LA", (W, H), (50, 128)), "TIFF")
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    assert content.count(unassociated) == 1
    # 50 of grey that covers half, over white.
    assert decode_field("f", content.replace(unassociated, associated))[0, 0].tolist() == pytest.approx(
        [177] * 3, abs=2
    )


def test_transparent_colour_of_a_palette_is_white() -> None:
    picture = Image.fromarray(np.where(np.arange(W) < W // 2, 0, 1).astype(np.uint8)[None].repeat(H, 0), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    pixels = rgb(picture, transparency=0)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, -1].tolist() == [40, 50, 60]


RAMP = np.linspace(0, 1, H * W).reshape(H, W)
RAMP_8 = np.rint(RAMP * 255).astype(int)


@pytest.mark.parametrize(
    ("values", "fmt"),
    [
        (np.rint(RAMP * 65535).astype(np.uint16), "PNG"),
        (np.rint(RAMP * 65535).astype(np.uint16), "TIFF"),
        (np.rint(RAMP * (2**31 - 1)).astype(np.int32), "TIFF"),
        (np.rint(RAMP * 65535).astype(np.int32), "TIFF"),
        (np.rint(RAMP * 255).astype(np.int32) - (RAMP < 0.001), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        ((RAMP * 255).astype(np.float32), "TIFF"),
        ((RAMP * 65535).astype(np.float32), "TIFF"),
    ],
)
def test_deep_grey_is_scaled_by_its_range(values: NDArray[np.generic], fmt: str) -> None:
    pixels = rgb(Image.fromarray(values), fmt).astype(int)
    assert np.abs(pixels - RAMP_8[..., None]).max() <= 1
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_a_camera_of_fewer_bits_is_not_dark(bits: int, fmt: str) -> None:
    values = np.rint(RAMP * 0.9 * (2**bits - 1)).astype(np.uint16)
    assert np.abs(rgb(Image.fromarray(values), fmt)[..., 0].astype(int) - 0.9 * RAMP_8).max() <= 1.5


def test_the_depth_of_a_dim_picture_is_no_finer_than_a_cameras() -> None:
    assert rgb(Image.fromarray(np.full((H, W), 60, np.uint16))).max() == 60
    assert rgb(Image.fromarray(np.full((H, W), 16 * 30, np.uint16))).max() == 120  # of 10 bits
    assert rgb(Image.fromarray(np.full((H, W), 257 * 70, np.uint16))).max() == 70  # of 16


def test_white_is_zero_16_bit_tiff_is_turned_round() -> None:
    content = encoded(Image.fromarray(np.full((H, W), 257 * 70, np.uint16)), "TIFF", tiffinfo={262: 0})
    assert decode_field("f", content).max() == 185


def png(colour_type: int, bits: int, rows: bytes, width: int = W, height: int = H) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_rgb_png() -> None:
    deep = smear().astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    np.testing.assert_array_equal(decode_field("f", png(2, 16, rows)), smear())


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("opaque", [None, 65535])
def test_rgb_png_of_a_camera_of_fewer_bits(bits: int, opaque: int | None) -> None:
    bright = smear() // 2 + 128
    deep = bright.astype(np.uint32) * (2**bits - 1) // 255
    if opaque is not None:
        deep = np.dstack([deep, np.full((H, W), opaque)])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    pixels = decode_field("f", png(2 if opaque is None else 6, 16, rows))
    assert np.abs(pixels.astype(int) - bright).max() <= 1


def test_damage_in_a_deep_png_is_named() -> None:
    deep = smear().astype(">u2") * 257
    content = png(2, 16, b"".join(b"\0" + row.tobytes() for row in deep))
    with pytest.raises(FieldError):
        decode_field("f", content[: len(content) // 2])


def test_16_bit_rgb_tiff() -> None:
    # Pillow writes none: an 8-bit one of twice the width has the same bytes; its header is mended.
    deep = (smear().astype("<u2") * 257).tobytes()
    content = encoded(Image.frombytes("RGB", (2 * W, H), deep), "TIFF")
    bits_at = content.index(struct.pack("<HHH", 8, 8, 8))
    content = content[:bits_at] + struct.pack("<HHH", 16, 16, 16) + content[bits_at + 6 :]
    content = content.replace(struct.pack("<HHII", 256, 4, 1, 2 * W), struct.pack("<HHII", 256, 4, 1, W))
    np.testing.assert_array_equal(decode_field("f", content), smear())


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(fmt: str, orientation: int) -> None:
    picture = Image.fromarray(smear())
    exif = Image.Exif()
    exif[274] = orientation
    upright = picture.copy()
    upright.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright)).astype(int)
    pixels = rgb(picture, fmt, exif=exif, **({"quality": 95} if fmt == "JPEG" else {}))
    assert pixels.shape == ((W, H, 3) if orientation > 4 else (H, W, 3))
    assert np.abs(pixels - expected).mean() < 3


def test_exif_orientation_of_16_bit_tiff() -> None:
    values = np.rint(RAMP * 65535).astype(np.uint16)
    exif = Image.Exif()
    exif[274] = 6
    pixels = rgb(Image.fromarray(values), "TIFF", exif=exif)[..., 0].astype(int)
    assert np.abs(pixels - np.rot90(RAMP_8, -1)).max() <= 1


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "BMP"])
def test_large_picture_is_read_without_a_warning(fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(smear()), fmt)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 3)  # stands for a picture of three times Pillow's limit
    assert decode_field("f", content).shape == (H, W, 3)


# What is wrong with a file


def bmp_header(width: int, height: int) -> bytes:
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def tiff_header(width: int, height: int) -> bytes:
    tags = ImageFileDirectory_v2()
    for tag, value in ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height), (279, 9)):
        tags[tag] = value
    return b"II*\0" + struct.pack("<I", 8) + tags.tobytes(8)


NOISY_JPEG = encoded(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)), "JPEG", quality=95
)
NAN = np.full((H, W), np.nan, np.float32)
BAD = {
    "empty": (b"", "is empty"),
    "text": (b"not a picture at all\n" * 20, "is no JPEG, PNG, TIFF or BMP image"),
    "gif": (encoded(Image.fromarray(smear()), "GIF"), "is no JPEG, PNG, TIFF or BMP image"),
    "one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "is 1×1 px, less than 32 px a side"),
    "narrow": (encoded(Image.new("L", (31, 500)), "JPEG"), "is 31×500 px, less than 32 px a side"),
    "jpeg cut in half": (NOISY_JPEG[: len(NOISY_JPEG) // 2], "is truncated"),
    "jpeg cut in its header": (JPEG[:30], "cannot be decoded"),
    "jpeg padded with zeros": (NOISY_JPEG[: len(NOISY_JPEG) // 2].ljust(len(NOISY_JPEG), b"\0"), "is truncated"),
    "png cut": (encoded(Image.fromarray(smear()), "PNG")[:-60], "cannot be decoded"),
    "bmp cut": (encoded(Image.fromarray(smear()), "BMP")[:-60], "truncated"),
    "tiff cut": (encoded(Image.fromarray(smear()), "TIFF")[:200], "is truncated"),
    "lzw tiff cut": (encoded(Image.fromarray(smear()), "TIFF", compression="tiff_lzw")[:-300], "cannot be decoded"),
    "huge png": (png(2, 8, b"", 30_000, 30_000), "is 30000×30000 px, more than 178 megapixels"),
    "huge bmp": (bmp_header(30_000, 30_000), "is 30000×30000 px, more than 178 megapixels"),
    "huge tiff": (tiff_header(30_000, 30_000), "is 30000×30000 px, more than 178 megapixels"),
    "not a number": (encoded(Image.fromarray(NAN), "TIFF"), "has pixels that are not numbers"),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_file_is_refused_with_its_name_and_reason(root: UPath, content: bytes, reason: str) -> None:
    with pytest.raises(FieldError, match=reason) as caught:
        read_field(put(root / "s" / "bad.jpg", content))
    assert caught.value.name == "bad.jpg"


def test_the_size_limit_lets_a_whole_slide_region_pass() -> None:
    assert 12_000 * 14_000 < MAX_FIELD_PX < 30_000 * 30_000


@given(st.integers(2, len(NOISY_JPEG) - 1))
def test_jpeg_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(FieldError):
        decode_field("f", NOISY_JPEG[:length])


@given(st.binary(max_size=200), st.sampled_from([JPEG[:200], bmp_header(64, 64), tiff_header(64, 64), b"\x89PNG\r\n"]))
def test_any_bytes_give_pixels_or_a_field_error(tail: bytes, head: bytes) -> None:
    try:
        pixels = decode_field("f", head + tail)
    except FieldError:
        return
    assert pixels.shape[2] == 3


def test_file_without_leave_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(UPath(tmp_path / "locked.jpg"))
    path.chmod(0)

    def refuse(self: UPath) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    if os.geteuid() == 0:
        monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(FieldError, match=r"locked\.jpg: cannot be read: Permission denied") as caught:
        read_field(path)
    assert str(tmp_path) not in caught.value.reason


# Digest


def test_digest_is_of_the_bytes_that_were_decoded(root: UPath) -> None:
    path = put(root / "a.jpg")
    assert digest(field_content(path)) == digest(JPEG)
    assert digest(JPEG) != digest(JPEG + b"\0")


# Scale


def tiff(**options: object) -> bytes:
    return encoded(Image.fromarray(smear()), "TIFF", **options)


def ome(attributes: str) -> bytes:
    xml = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="x"><Image><Pixels {attributes}/></Image></OME>'
    return tiff(tiffinfo={270: xml.encode()})


@pytest.mark.parametrize(
    ("content", "um_per_px"),
    [
        (tiff(resolution_unit=3, x_resolution=40_000.0, y_resolution=40_000.0), 0.25),
        (tiff(resolution_unit=2, x_resolution=254_000.0, y_resolution=254_000.0), 0.1),
        (tiff(resolution_unit=2, x_resolution=72.0, y_resolution=72.0), None),
        (tiff(resolution_unit=2, x_resolution=300.0, y_resolution=300.0), None),
        (tiff(resolution_unit=1, x_resolution=40_000.0, y_resolution=40_000.0), None),
        (tiff(resolution_unit=3, x_resolution=40_000.0, y_resolution=20_000.0), None),
        (tiff(resolution_unit=3, x_resolution=0.0, y_resolution=0.0), None),
        (tiff(), None),
        (ome('PhysicalSizeX="0.2"'), 0.2),
        (ome('PhysicalSizeX="0.2" PhysicalSizeXUnit="µm"'), 0.2),
        (ome('PhysicalSizeX="65" PhysicalSizeXUnit="nm"'), 0.065),
        (ome('PhysicalSizeX="0.0003" PhysicalSizeXUnit="mm"'), 0.3),
        (ome('PhysicalSizeX="1" PhysicalSizeXUnit="pixel"'), None),
        (ome('SizeX="60"'), None),
        (tiff(tiffinfo={270: "<OME broken"}, resolution_unit=3, x_resolution=1e5, y_resolution=1e5), 0.1),
        (JPEG, None),
        (b"", None),
        (b"II*\0garbage", None),
    ],
)
def test_scale_is_read_from_the_header(content: bytes, um_per_px: float | None) -> None:
    expected = None if um_per_px is None else pytest.approx(um_per_px)
    assert um_per_px_of(content) == expected
