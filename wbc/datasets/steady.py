"""Data that must not change under their reader: files watched while they are read, and digests of what was read."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Stamp = tuple[int, int]


@contextmanager
def steady(*places: Path) -> Iterator[None]:
    """While the block reads these files, and files of these folders, none of them may change.

    Raises ValueError at its end, naming one that was changed, added or taken away: boxes and pictures of two moments
    do not belong together.
    """
    before = _stamps(places)
    yield
    after = _stamps(places)
    if changed := sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(f"{changed[0]}{more} changed while the data were read: start again when nobody writes to them")


def _stamps(places: Iterable[Path]) -> dict[str, Stamp]:
    stamps: dict[str, Stamp] = {}
    for place in places:
        if place.is_dir():
            for folder, _, names in os.walk(place):
                stamps |= {os.path.join(folder, name): _stamp(os.path.join(folder, name)) for name in names}
        elif place.is_file():
            stamps[str(place)] = _stamp(str(place))
    return stamps


def _stamp(path: str) -> Stamp:
    try:
        stat = os.stat(path)
    except FileNotFoundError:  # taken away between two looks
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def arrays_digest(arrays: Iterable[NDArray[Any]]) -> str:
    """SHA-256 of arrays with their shapes and types, in their order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
