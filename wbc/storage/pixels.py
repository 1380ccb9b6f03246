"""One slide's pixels in one Zarr 3 group: an array a field, one shard each, chunks of tile size."""

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from upath import UPath
from zarr.codecs import BloscCodec
from zarr.storage import FsspecStore, LocalStore

from wbc.storage.atomic import local_path, remove_folder
from wbc.types import FieldKey, Slide

CHUNK_PX = 640
COMPRESSION = BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle")


def create_group(group: UPath, slide: Slide) -> None:
    """An empty group for `slide`, in place of whatever was there.

    Its metadata is written before any field, so that writers of different fields never meet.
    """
    remove_folder(group)
    names = [path.name for path in slide.field_paths]
    zarr.create_group(_store(group), attributes={"slide_id": slide.slide_id, "fields": names})


def write_pixels(group: UPath, key: FieldKey, pixels: NDArray[np.uint8]) -> None:
    """Write one field, uint8 (H,W,3), into the slide's group. Raises ValueError on another shape or dtype."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"{key}: pixels are {pixels.dtype} {pixels.shape}, not uint8 (H,W,3)")
    side = CHUNK_PX
    shard = tuple(-(-length // side) * side for length in pixels.shape[:2])
    array = zarr.create_array(
        _store(group),
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


def read_pixels(group: UPath, key: FieldKey) -> NDArray[np.uint8]:
    """A field's pixels, uint8 (H,W,3). Raises FileNotFoundError where it was never written."""
    array = zarr.open_array(_store(group), path=_name(key), mode="r")
    return np.asarray(array[:], np.uint8)


def stored_size(group: UPath, key: FieldKey) -> tuple[int, int]:
    """Height and width of a stored field. Raises FileNotFoundError where it was never written."""
    height, width, _ = zarr.open_array(_store(group), path=_name(key), mode="r").shape
    return height, width


def _name(key: FieldKey) -> str:
    return f"{key.field:05d}"


def _store(group: UPath) -> Any:
    if (local := local_path(group)) is not None:
        return LocalStore(local)
    if group.protocol == "memory":
        return FsspecStore.from_url(f"memory://{group.path}")
    return FsspecStore.from_url(str(group), storage_options=dict(group.storage_options))
