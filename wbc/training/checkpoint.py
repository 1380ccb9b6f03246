"""The whole state of a training in one file, from which it goes on as if it had never stopped."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from upath import UPath

from wbc.storage.atomic import write_whole

log = logging.getLogger(__name__)
CHECKPOINT, LOCK = "checkpoint.pt", "training.lock"
LAST_BREATH_SECONDS = 10.0  # the processes of a training that was killed hold the lock until they see it


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other training writes to `folder`, which is made.

    Two would each go on from what the other has written. Raises ValueError, naming the folder, where there is one,
    OSError where nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, timeout=LAST_BREATH_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{folder}: another training writes there; wait for its end, or choose another folder"
        ) from None
    except NotImplementedError:
        log.warning("%s lies on a file system without locks: nothing keeps another training away", folder)
    try:
        yield
    finally:
        lock.release()


def restore(checkpoint: Path, parts: Mapping[str, Any], device: torch.device) -> int:
    """Put every part back to what it was; the number of steps that are behind it.

    Raises ValueError where `checkpoint` is not one of this version, or of other data or another teacher.
    """
    saved = torch.load(checkpoint, map_location=device, weights_only=True)
    if lacking := sorted(parts.keys() - saved.keys()):
        raise ValueError(
            f"{checkpoint}: it has no {', '.join(lacking)}, and is from another version of wbc: delete it to start over"
        )
    try:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}: delete it to start over") from error
    return int(saved["step"])


def save(checkpoint: Path, parts: Mapping[str, Any], step: int) -> None:
    """The whole state or none of it, whenever the process is stopped.

    Raises OSError where there is no room for it: the checkpoint that was there before stays.
    """
    content = BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, content)
    try:
        write_whole(UPath(checkpoint), content.getvalue())
    except OSError as error:
        older = (
            "the one before it stands: make room, and start again to go on from there" if checkpoint.exists() else ""
        )
        reason = f"no checkpoint of step {step}: {error.strerror or error}"
        raise OSError(error.errno, "; ".join(filter(None, [reason, older])), str(checkpoint)) from error


class Digest:
    """A digest among a training's parts: what was saved by one is not restored by another."""

    def __init__(self, what: str, digest: str) -> None:
        self.what, self.digest = what, digest

    def state_dict(self) -> dict[str, str]:
        """As a checkpoint holds it."""
        return {"digest": self.digest}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Raises ValueError where a checkpoint's digest is another."""
        if state["digest"] != self.digest:
            raise ValueError(f"{self.what} {state['digest'][:12]}… before, {self.digest[:12]}… now")
