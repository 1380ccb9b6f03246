"""A damaged picture of full length fails; borders, vignettes and empty corners do not."""

from io import BytesIO

import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from wbc.storage.images import decode_field
from wbc.types import FieldError

H, W = 480, 640


def field() -> NDArray[np.uint8]:
    """Discs on a bright ground, with a camera's noise: no two rows are alike."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:H, :W]
    pixels = np.full((H, W, 3), (225, 215, 220), float)
    for cx, cy in rng.uniform(0, W, (60, 2)):
        pixels[(x - cx) ** 2 + (y - cy) ** 2 < 900] = (190, 120, 150)
    return (pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)


FIELD = field()


def encoded(pixels: NDArray[np.uint8], fmt: str, **options: object) -> bytes:
    sink = BytesIO()
    Image.fromarray(pixels).save(sink, fmt, **options)
    return sink.getvalue()


FILES = {
    "jpeg": encoded(FIELD, "JPEG", quality=92),
    "jpeg, grey": encoded(FIELD[..., 0], "JPEG", quality=92),
    "jpeg, progressive": encoded(FIELD, "JPEG", quality=92, progressive=True),
    "jpeg, restart markers": encoded(FIELD, "JPEG", quality=92, restart_marker_rows=1),
    "png": encoded(FIELD, "PNG"),
    "bmp": encoded(FIELD, "BMP"),
    "bmp, grey": encoded(FIELD[..., 0], "BMP"),
    "tiff": encoded(FIELD, "TIFF"),
    "tiff, lzw": encoded(FIELD, "TIFF", compression="tiff_lzw"),
    "tiff, deflate": encoded(FIELD, "TIFF", compression="tiff_adobe_deflate"),
    "tiff, jpeg": encoded(FIELD, "TIFF", compression="jpeg"),
}

fractions = st.floats(0.1, 0.85)


@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_whole_files_are_read(content: bytes) -> None:
    assert decode_field("f", content).shape == (H, W, 3)


def refused(content: bytes) -> None:
    with pytest.raises(FieldError, match=r"damaged|truncated|cannot be decoded|is 0×0 px"):
        decode_field("f", content)


@pytest.mark.parametrize("name", FILES)
@settings(derandomize=True, max_examples=50)
@given(fraction=fractions)
def test_file_cut_off_and_filled_up_to_its_length_is_refused(name: str, fraction: float) -> None:
    kept = int(fraction * len(FILES[name]))
    refused(FILES[name][:kept].ljust(len(FILES[name]), b"\0"))


@pytest.mark.parametrize("name", FILES)
def test_file_that_ends_in_an_erased_block_is_refused(name: str) -> None:
    kept = int(0.4321 * len(FILES[name]))
    refused(FILES[name][:kept].ljust(len(FILES[name]), b"\xff"))


@pytest.mark.parametrize("name", FILES)
@settings(derandomize=True, max_examples=50)
@given(fraction=fractions)
def test_file_with_a_hole_is_refused(name: str, fraction: float) -> None:
    content = FILES[name]
    start = int(fraction * len(content))
    length = min(16_384, len(content) // 10)
    refused(content[:start] + bytes(length) + content[start + length :])


@pytest.mark.parametrize("name", ["bmp", "bmp, grey", "tiff"])
@settings(derandomize=True, max_examples=100)
@given(fraction=fractions, length=st.sampled_from([512, 1024, 1460, 4096]))
def test_hole_shorter_than_a_row_is_refused(name: str, fraction: float, length: int) -> None:
    start = int(fraction * len(FILES[name]))
    refused(FILES[name][:start] + bytes(length) + FILES[name][start + length :])


@pytest.mark.parametrize("name", ["jpeg", "jpeg, grey", "jpeg, progressive"])
@settings(derandomize=True, max_examples=50)
@given(fraction=fractions)
def test_jpeg_cut_off_that_was_given_an_end_is_refused(name: str, fraction: float) -> None:
    refused(FILES[name][: int(fraction * len(FILES[name]))] + b"\xff\xd9")


def test_restart_markers_out_of_their_order_are_refused() -> None:
    content = FILES["jpeg, restart markers"]
    assert content.count(b"\xff\xd3") > 1
    at = content.index(b"\xff\xd3")
    refused(content[:at] + b"\xff\xd5" + content[at + 2 :])


def first_visible_flip(content: bytes) -> bytes:
    """The JPEG with the first bit flipped, from its middle on, that shifts all that follows and gives no warning."""
    whole = simplejpeg.decode_jpeg(content).astype(int)
    for at in range(len(content) // 2, len(content) - 2):
        flipped = content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :]
        try:
            pixels = simplejpeg.decode_jpeg(flipped)
        except ValueError:
            continue
        if np.median(abs(pixels[-100:] - whole[-100:])) > 12:
            return flipped
    raise AssertionError("no bit does")


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpeg_whose_colours_shift_from_one_block_on_is_refused(subsampling: str) -> None:
    content = encoded(FIELD, "JPEG", quality=92, subsampling=subsampling)
    with pytest.raises(FieldError, match=r"is damaged: from row \d+, column \d+ on all colours are off by \d+ levels"):
        decode_field("f", first_visible_flip(content))


def test_strip_of_a_tiff_whose_colours_shift_is_refused() -> None:
    sink = BytesIO()
    tifffile.imwrite(sink, FIELD, photometric="rgb", compression="jpeg", rowsperstrip=160)
    content = sink.getvalue()
    page = tifffile.TiffFile(BytesIO(content)).pages.first
    assert page.jpegtables is None
    start, end = page.dataoffsets[1], page.dataoffsets[1] + page.databytecounts[1]
    with pytest.raises(FieldError, match=r"is damaged: from row \d+, column \d+ on all colours are off by \d+ levels"):
        decode_field("f", content[:start] + first_visible_flip(content[start:end]) + content[end:])


def test_picture_without_any_content_is_refused() -> None:
    for fmt in ("BMP", "TIFF"):
        refused(encoded(np.zeros((H, W, 3), np.uint8), fmt))


# What is no damage

y, x = np.mgrid[:H, :W]
MASKS = {
    "circle within": (x - 320) ** 2 + (y - 240) ** 2 < 200**2,
    "circle that fills the height": (x - 320) ** 2 + (y - 240) ** 2 < 240**2,
    "circle that is cut by all sides": (x - 320) ** 2 + (y - 240) ** 2 < 360**2,
    "circle off the middle": (x - 400) ** 2 + (y - 150) ** 2 < 300**2,
    "octagon": abs(x - 320) + abs(y - 240) < 380,
    "frame": (x > 30) & (x < 600) & (y > 20) & (y < 440),
    "bars above and below": (y > 60) & (y < 420),
    "bars at the sides": (x > 60) & (x < 500),
    "strip below": y < 440,
    "strip above": y > 40,
    "turned a little": (y < 400 + 0.05 * x) & (y > 40 + 0.05 * x),
    "turned the other way": (y < 440 - 0.05 * x) & (y > 80 - 0.05 * x),
    "cross hair": (x != 320) & (y != 240),
    "scale bar": ~((x > 450) & (x < 600) & (y > 440) & (y < 450)),
    "line across": y != 300,
    "outline": ~((x >= 200) & (x <= 400) & (y >= 100) & (y <= 300) & ((x % 200 == 0) | (y % 200 == 100))),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("fmt", ["BMP", "TIFF", "JPEG"])
def test_borders_vignettes_and_marks_are_read(mask: NDArray[np.bool_], fill: int, fmt: str) -> None:
    pixels = np.where(mask[..., None], FIELD, fill).astype(np.uint8)
    assert decode_field("f", encoded(pixels, fmt)).shape == (H, W, 3)


def test_painted_fields_are_read() -> None:
    pixels = np.full((H, W, 3), 255, np.uint8)
    pixels[100:140, 200:300] = pixels[400:470, 50:90] = 0
    for shown in (pixels, 255 - pixels):
        for fmt in ("BMP", "TIFF"):
            assert decode_field("f", encoded(shown, fmt)).shape == (H, W, 3)
