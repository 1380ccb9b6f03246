"""One slide's pixels in one Zarr 3 group: an array a field, one chunk each, uncompressed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
import zarr
from numpy.typing import NDArray
from upath import UPath
from zarr.storage import FsspecStore, LocalStore

from wbc.storage.atomic import local_path, remove_folder
from wbc.types import FieldKey, Slide


def create_group(group: UPath, slide: Slide) -> None:
    """An empty group for `slide`, in place of whatever was there.

    Its metadata is written before any field, so that writers of different fields never meet.
    """
    remove_folder(group)
    attributes = {"slide_id": slide.slide_id, "fields": list(slide.field_names)}
    zarr.create_group(_store(group), attributes=attributes)


class PixelsLost(Exception):
    """What is stored of a field is not what was written, or is not there."""


@dataclass(frozen=True)
class StoredPixels:
    """What was written of a field: its size in px, and 128 bits of XXH3 of the size and the pixels."""

    height: int
    width: int
    xxh3: str


def write_pixels(group: UPath, key: FieldKey, pixels: NDArray[np.uint8]) -> StoredPixels:
    """Write one field, uint8 (H,W,3), into the slide's group; what `read_pixels` then knows it by.

    Raises ValueError on another shape or dtype.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{key}: pixels are {pixels.dtype} {pixels.shape}, not uint8 (H,W,3)")
    # A field is written and read once, and whole: compressing it, and cutting it up, cost six times as much.
    array = zarr.create_array(
        _store(group),
        name=_name(key),
        shape=pixels.shape,
        dtype="uint8",
        chunks=pixels.shape,
        compressors=None,
        chunk_key_encoding={"name": "default", "separator": "."},  # "/" is three folders more for a field's one file
        overwrite=True,
        dimension_names=("y", "x", "channel"),
        config={"write_empty_chunks": True},  # else every chunk is first compared with zeros: half the time of writing
    )
    array[:] = pixels
    return _identify(pixels)


def read_pixels(group: UPath, key: FieldKey, expected: StoredPixels) -> NDArray[np.uint8]:
    """A field's pixels, uint8 (H,W,3), the very ones that are `expected`. Raises PixelsLost.

    Zarr itself reads a missing chunk as zeros: a black field without a cell.
    """
    try:
        # Told no format, Zarr looks for the files of both: half of what reading a small field takes.
        array = zarr.open_array(_store(group), path=_name(key), mode="r", zarr_format=3)
        pixels = np.asarray(array[:], np.uint8)
    except Exception as error:  # every codec and every fsspec back end has its own
        raise PixelsLost(f"{key}: {error}") from error
    if _identify(pixels) != expected:
        raise PixelsLost(f"{key}: not the pixels that were written")
    return pixels


def _identify(pixels: NDArray[np.uint8]) -> StoredPixels:
    height, width = pixels.shape[:2]
    # Against accidents, not against a forger: SHA-256 took half of what a field's writing and reading cost.
    digest = xxhash.xxh3_128(f"{height},{width}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return StoredPixels(height, width, digest.hexdigest())


def _name(key: FieldKey) -> str:
    return f"{key.field:05d}"


def _store(group: UPath) -> Any:
    if (local := local_path(group)) is not None:
        return LocalStore(local)
    if group.protocol == "memory":
        return FsspecStore.from_url(f"memory://{group.path}")
    return FsspecStore.from_url(str(group), storage_options=dict(group.storage_options))
