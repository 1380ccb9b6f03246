"""The annotation store: labelled pictures that people added, kept for good; nothing in it is ever changed.

```
STORE/pictures/<sha256><suffix>          each picture once, under the digest of its content
STORE/shards/<UTC time>-<digest>.json    what one person added at one time: COCO, with who, when and whence in `info`
STORE/snapshots/<digest>.json            the shards that were there at one time
STORE/trainings/<UTC time>-<digest>.json what a training has learnt from: the digest of a snapshot
```
A shard is written when all of its pictures are there, under a temporary name, then renamed: two who add at once write
different files, and one who is killed leaves no shard. A picture that is in several shards is labelled as the last of
them has it. The set of shards has a digest, by which a training names what it has learnt from.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from upath import UPath

from wbc.datasets.coco import coco_truth, pages_of
from wbc.datasets.labels import LabelledPicture, Picture, size_of
from wbc.storage.atomic import publish, staged, write_temporary, write_whole

SHARD_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Added:
    """What was added: how many pictures and annotations, and the name of their shard."""

    pictures: int
    annotations: int
    shard: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a store held at one time: the names of its shards in order of time, and the digest of their set."""

    shards: tuple[str, ...]
    digest: str

    @staticmethod
    def of(shards: Iterable[str]) -> "Snapshot":
        """The snapshot of some shards. Their names hold the digests of their content."""
        names = tuple(sorted(shards))
        return Snapshot(names, hashlib.sha256("\n".join(names).encode()).hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class AnnotationStore:
    """A store in the folder `path`, local or an object store's; it need not exist before something is added."""

    path: UPath

    def add(
        self, labelled: Sequence[LabelledPicture], *, by: str, source: str, um_per_px: float | None = None
    ) -> Added:
        """Copy labelled pictures into the store: what `by` made, from `source`, all at one scale where it is known.

        Their labels are cell types. Raises ValueError where there is no annotation, a file is no picture, or one
        picture is there twice with different labels; OSError where something cannot be read or written. Then no shard
        is written.
        """
        if not any(picture.labels for picture in labelled):
            raise ValueError(f"{source}: no annotation to add")
        entries: dict[str, LabelledPicture] = {}
        for picture in labelled:
            name = self._keep(picture)
            if not _are_same(entries.setdefault(name, picture), picture):
                raise ValueError(f"{picture.path} and {entries[name].path} are one picture with different labels")
        categories = sorted({label for picture in entries.values() for label in picture.labels})
        sized = [(name, *size_of(picture.path), picture) for name, picture in entries.items()]
        truth = coco_truth(sized, categories)
        for image in truth["images"]:
            image |= _origin(entries[image["file_name"]], um_per_px)
        return Added(len(entries), len(truth["annotations"]), self._write_shard(truth, by, source))

    def shards(self) -> list[str]:
        """The names of the store's shards, in order of time."""
        folder = self.path / "shards"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if name.endswith(".json") and not name.startswith("."))

    def snapshot(self) -> Snapshot:
        """What the store holds now. It is written down, so that its digest finds it again. Raises OSError."""
        snapshot = Snapshot.of(self.shards())
        place = self._snapshot_path(snapshot.digest)
        if not place.is_file():
            write_whole(place, json.dumps(snapshot.shards).encode())
        return snapshot

    def snapshot_of(self, digest: str) -> Snapshot:
        """A snapshot that was taken before. Raises ValueError where none has this digest."""
        try:
            snapshot = Snapshot.of(json.loads(self._snapshot_path(digest).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: no snapshot {digest} was taken here") from error
        if snapshot.digest != digest:
            raise ValueError(f"{self._snapshot_path(digest)}: this snapshot is not as it was taken")
        return snapshot

    def read(self, snapshot: Snapshot | None = None) -> list[LabelledPicture]:
        """The labelled pictures of a snapshot, of all that is there by default; of each picture its last labels.

        Raises ValueError, naming it, where a shard or picture is gone or has another content than was added.
        """
        last: dict[str, LabelledPicture] = {}
        for shard in self.shards() if snapshot is None else snapshot.shards:
            truth = self._shard(shard)
            for page, image in pages_of(truth, str(self._path(shard))):
                origin = image.get("um_per_px"), image.get("slide_id", "")
                boxes = np.array([mark.box for mark in page.marks], np.float32).reshape(-1, 4)
                labels = tuple(mark.label for mark in page.marks)
                last[page.name] = LabelledPicture(self.path / page.name, boxes, labels, *origin)
        for picture in last.values():
            _check_content(picture.path)
        return list(last.values())

    def facts(self, shard: str) -> dict[str, Any]:
        """Who added a shard, when and whence: `by`, `added_at` (ISO 8601), `source`; and its number of annotations.

        Raises ValueError as `read` does.
        """
        truth = self._shard(shard)
        return {**truth["info"], "annotations": len(truth["annotations"])}

    def count_since(self, snapshot: Snapshot | None) -> int:
        """How many annotations were added that a snapshot lacks; all where it is None. Raises ValueError as `read`."""
        known = set(snapshot.shards if snapshot else ())
        return sum(len(self._shard(shard)["annotations"]) for shard in self.shards() if shard not in known)

    def mark_trained(self, snapshot: Snapshot) -> None:
        """Write down that models have learnt from a snapshot. Raises OSError."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{snapshot.digest}.json"
        write_whole(self.path / "trainings" / name, json.dumps({"snapshot": snapshot.digest}).encode())

    def last_trained(self) -> Snapshot | None:
        """What was learnt from last; None where nothing was yet. Raises ValueError as `snapshot_of`."""
        folder = self.path / "trainings"
        names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".json") if folder.is_dir() else []
        return self.snapshot_of(names[-1].rpartition("-")[2]) if names else None

    def _path(self, shard: str) -> UPath:
        return self.path / "shards" / shard

    def _snapshot_path(self, digest: str) -> UPath:
        return self.path / "snapshots" / f"{digest}.json"

    def _keep(self, picture: LabelledPicture) -> str:
        """Copy a picture into the store. Returns its name there."""
        size_of(picture.path)
        content = picture.path.read_bytes()
        name = f"pictures/{_digest(content)}{picture.path.suffix.lower()}"
        place = self.path / name
        if not place.is_file():  # its name is its content: who else writes it writes the same
            publish(write_temporary(place, content, durable=True), place)
        return name

    def _write_shard(self, truth: dict[str, Any], by: str, source: str) -> str:
        added_at = datetime.now(UTC)
        truth["info"] = {"by": by, "added_at": added_at.isoformat(), "source": source}
        content = json.dumps(truth).encode()
        shard = f"{added_at:%Y%m%dT%H%M%S.%fZ}-{_digest(content)[:SHARD_DIGITS]}.json"
        with staged({self._path(shard): content}, durable=True):
            pass
        return shard

    def _shard(self, shard: str) -> Any:
        path = self._path(shard)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: this shard is gone, or cannot be read ({error})") from error
        if _digest(content)[:SHARD_DIGITS] != shard.removesuffix(".json").rpartition("-")[2]:
            raise ValueError(f"{path}: this shard is not as it was added")
        return json.loads(content)


def _are_same(one: LabelledPicture, other: LabelledPicture) -> bool:
    return one.labels == other.labels and bool((one.boxes == other.boxes).all())


def _origin(picture: LabelledPicture, um_per_px: float | None) -> dict[str, Any]:
    """What is known of a picture beside its labels, where it is; `name` is what its file was called."""
    known = {"name": picture.path.name, "um_per_px": um_per_px or picture.um_per_px, "slide_id": picture.slide_id}
    return {key: value for key, value in known.items() if value}


def _check_content(path: Picture) -> None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: this picture is gone, or cannot be read ({error})") from error
    if _digest(content) != path.stem:
        raise ValueError(f"{path}: this picture is not as it was added")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
