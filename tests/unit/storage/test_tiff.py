"""A TIFF's axes, channels, pages and compressions are read and never guessed."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from wbc.storage.images import decode_field, um_per_px_of
from wbc.types import FieldError

H, W = 240, 320


def smear() -> NDArray[np.uint8]:
    """A smooth picture without symmetry and without a run of one colour."""
    y, x = np.mgrid[:H, :W]
    return np.stack([40 + y // 2, 250 - x // 2, 50 + (x + y) // 4], axis=-1).astype(np.uint8)


def tiff(samples: NDArray[Any], **options: Any) -> bytes:
    sink = BytesIO()
    tifffile.imwrite(sink, samples, **options)
    return sink.getvalue()


def ome_tiff(samples: NDArray[Any], **metadata: Any) -> bytes:
    return tiff(samples, ome=True, photometric="minisblack", metadata=metadata)


def pages(*pictures: NDArray[Any], **options: Any) -> bytes:
    sink = BytesIO()
    with tifffile.TiffWriter(sink) as writer:
        for picture in pictures:
            writer.write(picture, photometric="rgb", metadata=None, **options)
    return sink.getvalue()


def pyramid(*, subifds: bool, resolution: tuple[float, float] = (40_000, 40_000)) -> bytes:
    sink = BytesIO()
    with tifffile.TiffWriter(sink) as writer:
        common: dict[str, Any] = {"photometric": "rgb", "resolutionunit": 3, "tile": (64, 64), "metadata": None}
        writer.write(smear(), subifds=2 if subifds else 0, resolution=resolution, **common)
        for step in (2, 4):
            smaller = smear()[::step, ::step]
            writer.write(smaller, subfiletype=1, resolution=(resolution[0] / step,) * 2, **common)
    return sink.getvalue()


CHANNELS = smear().transpose(2, 0, 1)
NAMES = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
COLOURS = {"axes": "CYX", "Channel": {"Color": [65535, 16711935, -16776961]}}
WHOLE = {
    "interleaved": tiff(smear(), photometric="rgb"),
    "planes": tiff(CHANNELS, photometric="rgb", planarconfig="separate"),
    "planes in strips": tiff(CHANNELS, photometric="rgb", planarconfig="separate", rowsperstrip=50),
    "tiles": tiff(smear(), photometric="rgb", tile=(64, 128)),
    "big endian": tiff(smear(), photometric="rgb", byteorder=">"),
    "BigTIFF": tiff(smear(), photometric="rgb", bigtiff=True),
    "OME, channels": ome_tiff(CHANNELS, axes="CYX"),
    "OME, named": ome_tiff(CHANNELS, **NAMES),
    "OME, named otherwise": ome_tiff(CHANNELS[::-1], axes="CYX", Channel={"Name": ["blue", "green", "red"]}),
    "OME, coloured": ome_tiff(CHANNELS[::-1], **COLOURS),
    "OME, samples": tiff(smear(), ome=True, photometric="rgb", metadata={"axes": "YXS"}),
    "OME, more axes": tiff(CHANNELS[None, :, None], ome=True, photometric="minisblack", metadata={"axes": "TCZYX"}),
    "ImageJ, channels": tiff(CHANNELS, imagej=True, metadata={"axes": "CYX", "mode": "composite"}),
    "ImageJ, samples": tiff(smear(), imagej=True, metadata={"axes": "YXS"}),
    "pages, smaller ones marked": pyramid(subifds=False),
    "pyramid": pyramid(subifds=True),
    **{
        code: tiff(smear(), photometric="rgb", compression=code, **options)
        for code, options in {
            "deflate": {},
            "lzw": {"predictor": True},
            "packbits": {},
            "zstd": {},
            "lzma": {},
            "jpeg2000": {},
            "webp": {"compressionargs": {"lossless": True}},
            "jpegxl": {"compressionargs": {"lossless": True}},
            "jpegxr": {"compressionargs": {"level": 1.0}},
        }.items()
    },
}


@pytest.mark.parametrize("content", WHOLE.values(), ids=WHOLE.keys())
def test_a_colour_picture_is_read_however_it_is_stored(content: bytes) -> None:
    np.testing.assert_array_equal(decode_field("f", content), smear())


@pytest.mark.parametrize("options", [{}, {"tile": (64, 128)}, {"rowsperstrip": 80}], ids=str)
def test_jpeg_inside(options: dict[str, Any]) -> None:
    content = tiff(smear(), photometric="rgb", compression="jpeg", compressionargs={"level": 95}, **options)
    assert np.abs(decode_field("f", content).astype(int) - smear()).mean() < 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_one_channel_is_grey(dtype: str) -> None:
    full = {"uint8": 255, "uint16": 65535, "int16": 32767, "float32": 1}[dtype]
    grey = (smear()[None, ..., 0] / 255 * full).astype(dtype)
    pixels = decode_field("f", ome_tiff(grey, axes="CYX"))
    assert np.abs(pixels - smear()[..., :1].astype(int)).max() <= 1


def test_16_bit_channels_are_scaled_by_their_range() -> None:
    np.testing.assert_array_equal(decode_field("f", ome_tiff(CHANNELS.astype(np.uint16) * 257, **NAMES)), smear())


BAD = {
    "stack of pages": (pages(smear(), smear()), r"is a stack \(2 along I\)"),
    "pages of two sizes": (pages(smear(), smear()[:200, :150]), r"holds 2 pictures \(320×240 px, 150×200 px\)"),
    "focus": (ome_tiff(CHANNELS, axes="ZYX"), r"is a stack \(3 along Z\)"),
    "time": (tiff(CHANNELS, imagej=True, metadata={"axes": "TYX"}), r"is a stack \(3 along T\)"),
    "no axes told": (tiff(CHANNELS, photometric="minisblack"), "is a stack"),
    "two channels": (ome_tiff(CHANNELS[:2], axes="CYX"), "has 2 channels, not red, green and blue"),
    "four channels": (ome_tiff(CHANNELS[[0, 1, 2, 0]], axes="CYX"), "has 4 channels"),
    "stains": (
        ome_tiff(CHANNELS, axes="CYX", Channel={"Name": ["DAPI", "FITC", "TRITC"]}),
        r"has 3 channels \(DAPI, FITC, TRITC\), not red, green and blue",
    ),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD.keys())
def test_what_is_not_one_colour_picture_fails_with_its_reason(content: bytes, reason: str) -> None:
    with pytest.raises(FieldError, match=reason):
        decode_field("f", content)


# Damage


def test_strip_that_was_never_written() -> None:
    content = bytearray(tiff(smear(), photometric="rgb", rowsperstrip=80, compression="lzw", metadata=None))
    with tifffile.TiffFile(BytesIO(bytes(content))) as file:
        counts = file.pages.first.tags["StripByteCounts"]
    content[counts.valueoffset : counts.valueoffset + 2] = b"\0\0"
    with pytest.raises(FieldError, match="parts of the picture are missing"):
        decode_field("f", bytes(content))


def test_jpeg_inside_with_a_hole() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8)
    content = bytearray(tiff(noise, photometric="rgb", compression="jpeg", rowsperstrip=H))
    assert decode_field("f", bytes(content)).shape == (H, W, 3)
    content[20_000:24_096] = bytes(4096)
    with pytest.raises(FieldError, match="is truncated or damaged"):
        decode_field("f", bytes(content))


def test_a_broken_tiff_writes_nothing_on_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    Image.fromarray(smear()).save(path, compression="tiff_lzw")  # its directory lies at the end
    path.write_bytes(path.read_bytes()[:-300])
    script = f"from upath import UPath; from wbc.storage.images import read_field; read_field(UPath({str(path)!r}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "FieldError: cut.tif: cannot be decoded: the TIFF holds no picture" in run.stderr
    assert "invalid offset" not in run.stderr


# Scale


def physical(unit: str, x: float, y: float) -> dict[str, Any]:
    sides = {"PhysicalSizeX": x, "PhysicalSizeXUnit": unit, "PhysicalSizeY": y, "PhysicalSizeYUnit": unit}
    return {"axes": "CYX", **sides}


@pytest.mark.parametrize(
    ("content", "um_per_px"),
    [
        (ome_tiff(CHANNELS, **physical("µm", 0.2, 0.2)), 0.2),
        (ome_tiff(CHANNELS, **physical("nm", 65, 65)), 0.065),
        (ome_tiff(CHANNELS, **physical("µm", 0.2, 0.3)), None),
        (ome_tiff(CHANNELS, **physical("µm", 0.015, 0.015)), None),
        (ome_tiff(CHANNELS, **physical("µm", 2.5, 2.5)), None),
        (tiff(smear(), imagej=True, resolution=(5, 5), metadata={"axes": "YXS", "unit": "um"}), 0.2),
        (tiff(smear(), imagej=True, resolution=(5, 5), metadata={"axes": "YXS", "unit": "micron"}), 0.2),
        (tiff(smear(), imagej=True, resolution=(0.005, 0.005), metadata={"axes": "YXS", "unit": "nm"}), 0.2),
        (tiff(smear(), imagej=True, resolution=(5, 5), metadata={"axes": "YXS", "unit": "pixel"}), None),
        (pyramid(subifds=True), 0.25),
        (pyramid(subifds=False), 0.25),
        (pages(smear(), smear(), resolution=(40_000, 40_000), resolutionunit=3), None),
    ],
)
def test_scale_of_the_picture_that_is_read(content: bytes, um_per_px: float | None) -> None:
    assert um_per_px_of(content) == (None if um_per_px is None else pytest.approx(um_per_px))


def test_scale_of_each_picture_of_ome_xml_is_its_own() -> None:
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels SizeX="99" SizeY="99" PhysicalSizeX="1.6"/></Image>'
        f'<Image ID="Image:1"><Pixels SizeX="{W}" SizeY="{H}" PhysicalSizeX="0.2"/></Image></OME>'
    )
    sink = BytesIO()
    Image.fromarray(smear()).save(sink, "TIFF", tiffinfo={270: xml.encode()})
    assert um_per_px_of(sink.getvalue()) == pytest.approx(0.2)
