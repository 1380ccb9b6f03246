"""What the last run learnt of a slide's fields (`OUT/.wbc/<slide_id>.json`), which spares the next one opening them.

Facts about files, true whichever count stands: lost, they cost no more than a digest of each field.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from upath import UPath

from wbc.storage.atomic import local_path, write_whole
from wbc.storage.images import status
from wbc.storage.layout import Layout
from wbc.types import FieldError, Slide

# What object stores call an object's version, which changes with its content, and what other file systems call the
# time of a file's last change; fsspec has no common names. The time of its creation tells nothing.
_VERSION_KEYS = ("ETag", "etag", "VersionId", "generation")
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modify")


@dataclass(frozen=True)
class FieldStamp:
    """What stands for a field's content while it does not change: name, size in bytes, and version or time of change.

    `modified` is an opaque string to compare, "" where the file system tells neither: then nothing stands for it.
    """

    name: str
    size: int
    modified: str


def stamp(path: UPath) -> FieldStamp:
    """The stamp of a field, without opening it. Raises FieldError where there is no such file or no leave to look.

    Taken before the content is read, it can only be older than the content, never newer.
    """
    found = status(path)
    if local_path(path) is not None:
        return FieldStamp(path.name, found.st_size, str(found.st_mtime_ns))
    return FieldStamp(path.name, found.st_size, _version(path))


def _version(path: UPath) -> str:
    """The version of a file that is not local, else the time of its last change; "" where its file system has none."""
    known = path.fs.info(path.path)
    told = next((known[key] for key in (*_VERSION_KEYS, *_TIME_KEYS) if known.get(key)), None)
    if told is None:
        try:
            told = path.fs.modified(path.path)
        except Exception:  # NotImplementedError mostly; each file system has its own
            return ""
    return told.isoformat() if isinstance(told, datetime) else str(told)


@dataclass(frozen=True, slots=True)
class FieldRecord:
    """A field's size in bytes and version when its content had the digest `sha256` ("": it was not readable)."""

    size: int
    modified: str
    sha256: str


def write_stamps(out: UPath, slide: Slide, records: Mapping[str, FieldRecord]) -> None:
    """Keep the records of a slide's fields by file name. Raises OSError where they cannot be written."""
    told = {name: {"size": r.size, "modified": r.modified, "sha256": r.sha256} for name, r in records.items()}
    content = json.dumps(told)
    write_whole(Layout(out).stamps(slide.slide_id), content.encode())


def read_stamps(out: UPath, slide: Slide) -> dict[str, FieldRecord]:
    """The records kept for a slide by file name; none where the file is missing or broken."""
    try:
        kept = json.loads(Layout(out).stamps(slide.slide_id).read_bytes())
        return {name: FieldRecord(int(r["size"]), str(r["modified"]), str(r["sha256"])) for name, r in kept.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def known_digests(out: UPath, slide: Slide) -> dict[str, str] | None:
    """Digests of all fields by file name; None where a field may have changed since, or could not be read then.

    A field of which the file system tells neither version nor time may have changed. Opens no field.
    """
    records = read_stamps(out, slide)
    known = {}
    for path in slide.field_paths:
        try:
            now = stamp(path)
        except FieldError:
            return None
        record = records.get(now.name)
        if record is None or not record.sha256 or not now.modified:
            return None
        if (record.size, record.modified) != (now.size, now.modified):
            return None
        known[now.name] = record.sha256
    return known
