"""One slide's pixels in one Zarr 3 group: an array a field, one shard each, chunks of tile size."""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from upath import UPath
from zarr.codecs import BloscCodec
from zarr.storage import FsspecStore, LocalStore

from wbc.types import FieldKey, Slide

CHUNK_PX = 640
COMPRESSION = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")


def create(path: UPath, slide: Slide) -> None:
    """An empty group for `slide` at `path`, in place of whatever was there.

    Its metadata is written before any field, so that writers of different fields never meet.
    """
    if path.exists():
        remove(path)
    names = [p.name for p in slide.field_paths]
    zarr.create_group(_store(path), attributes={"slide_id": slide.slide_id, "fields": names})


def write_field(path: UPath, key: FieldKey, pixels: NDArray[np.uint8]) -> None:
    """Write one field, uint8 (H,W,3), into the slide's group. Raises ValueError on another shape or dtype."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{key}: pixels are {pixels.dtype} {pixels.shape}, not uint8 (H,W,3)")
    side = CHUNK_PX
    shard = tuple(-(-length // side) * side for length in pixels.shape[:2])
    array = zarr.create_array(
        _store(path),
        name=_name(key),
        shape=pixels.shape,
        dtype="uint8",
        chunks=(side, side, 3),
        shards=(*shard, 3),
        compressors=COMPRESSION,
        chunk_key_encoding={"name": "default", "separator": "."},  # "/" is three folders more for a field's one file
        overwrite=True,
        dimension_names=("y", "x", "channel"),
        config={"write_empty_chunks": True},  # else every chunk is first compared with zeros: half the time of writing
    )
    array[:] = pixels


def read_field(path: UPath, key: FieldKey) -> NDArray[np.uint8]:
    """A field's pixels, uint8 (H,W,3). Raises FileNotFoundError where it was never written."""
    array = zarr.open_array(_store(path), path=_name(key), mode="r")
    return np.asarray(array[:], np.uint8)


def field_shape(path: UPath, key: FieldKey) -> tuple[int, int]:
    """Height and width of a stored field. Raises FileNotFoundError where it was never written."""
    height, width, _ = zarr.open_array(_store(path), path=_name(key), mode="r").shape
    return height, width


def remove(path: UPath) -> None:
    """Delete a slide's group, if it is there."""
    if path.exists():
        path.fs.rm(path.path, recursive=True)


def _name(key: FieldKey) -> str:
    return f"{key.field:05d}"


def _store(path: UPath) -> Any:
    if path.protocol in ("", "file", "local"):
        return LocalStore(path.path)
    if path.protocol == "memory":
        return FsspecStore.from_url(f"memory://{path.path}")
    return FsspecStore.from_url(str(path), storage_options=dict(path.storage_options))
