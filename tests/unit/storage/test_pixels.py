"""A slide's pixels come back as they went in, from any file system, and another program can read them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from upath import UPath
from zarr.core.metadata import ArrayV3Metadata

from wbc.storage.pixels import PixelsLost, create_group, read_pixels, write_pixels
from wbc.types import FieldKey, Slide

SLIDE = Slide("s1", tuple(UPath(f"/slides/s1/{name}") for name in ("a.png", "b c.png", "é.jpg")))


@pytest.fixture
def group(out: UPath) -> UPath:
    return out / "s1.zarr"


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (641, 1281), (640, 700)])
def test_a_field_comes_back_as_it_went_in(group: UPath, height: int, width: int) -> None:
    create_group(group, SLIDE)
    field = noise(height, width)
    stored = write_pixels(group, FieldKey("s1", 2), field)
    assert (stored.height, stored.width) == (height, width)
    assert np.array_equal(read_pixels(group, FieldKey("s1", 2), stored), field)


def test_fields_of_different_sizes_written_at_once_do_not_meet(group: UPath) -> None:
    create_group(group, SLIDE)
    fields = [noise(50 + 300 * i, 900 - 200 * i, i) for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        stored = list(pool.map(lambda i: write_pixels(group, FieldKey("s1", i), fields[i]), range(3)))
    for i, field in enumerate(fields):
        assert np.array_equal(read_pixels(group, FieldKey("s1", i), stored[i]), field)


def test_a_field_can_be_written_again_in_another_size(group: UPath) -> None:
    create_group(group, SLIDE)
    larger, smaller = (write_pixels(group, FieldKey("s1", 0), noise(size, size)) for size in (700, 40))
    assert np.array_equal(read_pixels(group, FieldKey("s1", 0), smaller), noise(40, 40))
    with pytest.raises(PixelsLost, match="not the pixels that were written"):
        read_pixels(group, FieldKey("s1", 0), larger)


def test_a_new_group_has_nothing_of_the_old_one(group: UPath) -> None:
    create_group(group, SLIDE)
    stored = write_pixels(group, FieldKey("s1", 0), noise(40, 40))
    create_group(group, SLIDE)
    with pytest.raises(PixelsLost):
        read_pixels(group, FieldKey("s1", 0), stored)


def test_a_chunk_that_is_gone_is_no_black_field(group: UPath) -> None:
    create_group(group, SLIDE)
    stored = write_pixels(group, FieldKey("s1", 0), noise(40, 40))
    (chunk,) = (path for path in group.fs.find(group.path) if "/c." in path)
    group.fs.rm_file(chunk)
    with pytest.raises(PixelsLost, match="not the pixels that were written"):
        read_pixels(group, FieldKey("s1", 0), stored)


def test_pixels_are_known_by_size_and_content(group: UPath) -> None:
    create_group(group, SLIDE)
    wide, tall = noise(40, 60), noise(40, 60).reshape(60, 40, 3)
    first, second, again = (write_pixels(group, FieldKey("s1", 0), pixels) for pixels in (wide, tall, wide))
    assert first == again
    assert first.xxh3 != second.xxh3


def test_plain_zarr_reads_the_group_and_learns_which_field_is_which(tmp_path: Path) -> None:
    create_group(UPath(tmp_path / "s1.zarr"), SLIDE)
    write_pixels(UPath(tmp_path / "s1.zarr"), FieldKey("s1", 1), noise(700, 650))
    group = zarr.open_group(tmp_path / "s1.zarr", mode="r")
    assert group.attrs["slide_id"] == "s1"
    assert group.attrs["fields"] == ["a.png", "b c.png", "é.jpg"]
    array = group["00001"]
    assert isinstance(array, zarr.Array)
    assert isinstance(array.metadata, ArrayV3Metadata)
    assert array.metadata.dimension_names == ("y", "x", "channel")
    files = [p.name for p in (tmp_path / "s1.zarr" / "00001").rglob("*") if p.is_file()]
    assert len(files) == 2, "a field is its metadata and one chunk"
    assert np.array_equal(np.asarray(array[100:200, :, :]), noise(700, 650)[100:200])


@pytest.mark.parametrize("pixels", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_no_field_is_refused(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    create_group(UPath(tmp_path / "s1.zarr"), SLIDE)
    with pytest.raises(ValueError, match=r"not uint8 \(H,W,3\)"):
        write_pixels(UPath(tmp_path / "s1.zarr"), FieldKey("s1", 0), pixels)
