"""Files that stand whole or not at all, on any file system: written under a temporary name, then renamed."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from uuid import uuid4

from upath import UPath


def local_path(path: UPath) -> str | None:
    """`path` as the operating system knows it; None where it is on no local file system."""
    return path.path if path.protocol in ("", "file", "local") else None


@contextmanager
def staged(contents: Mapping[UPath, bytes], *, durable: bool) -> Iterator[None]:
    """Write files under temporary names; when the block is done they take their places, in the order given.

    Where writing or the block fails, nothing takes its place and nothing stays. Where `durable`, the files, and the
    renamings in their order, are on a local disk by the end. Raises OSError, naming the file.
    """
    temporaries: dict[UPath, UPath] = {}
    try:
        for path, content in contents.items():
            with naming(path, "cannot be written"):
                temporaries[path] = write_temporary(path, content, durable=durable)
        yield
        for path in contents:
            publish(temporaries[path], path)
            del temporaries[path]
    finally:
        for temporary in temporaries.values():
            _discard(temporary)
    if durable and contents:
        _sync_folder(path.parent)


def write_whole(path: UPath, content: bytes) -> None:
    """Write or replace one file as `staged` does, not safe from a power cut."""
    with staged({path: content}, durable=False):
        pass


def write_temporary(path: UPath, content: bytes, *, durable: bool) -> UPath:
    """A file with `content` beside `path`, named `.….tmp`, which readers of a folder pass over; makes the folder.

    Where `durable`, and local, it is on the disk by the time of return. Raises OSError, naming a path, and leaves
    nothing.
    """
    temporary = path.parent / f".{path.name}.{uuid4().hex[:8]}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            if durable and local_path(path) is not None:
                file.flush()
                os.fsync(file.fileno())
    except BaseException as error:
        _discard(temporary)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:  # of a full disk, say
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    return temporary


def publish(temporary: UPath, path: UPath) -> None:
    """Give a temporary file its place, in one step where the file system has one."""
    source, target = local_path(temporary), local_path(path)
    if source is not None and target is not None:
        os.replace(source, target)
    else:
        path.fs.mv(temporary.path, path.path)


def temporaries(folder: UPath) -> Iterator[UPath]:
    """What a killed process left half-written in `folder` and below; nothing where there is no such folder."""
    if (local := local_path(folder)) is not None:
        for below, _, names in os.walk(local):
            yield from (UPath(below, name, protocol=folder.protocol) for name in filter(_is_temporary, names))
        return
    # An object store lists all that is below a folder at one call.
    for path in folder.fs.find(folder.path):
        if _is_temporary(path.rsplit("/", 1)[-1]):
            yield folder / path.removeprefix(folder.path).lstrip("/")


def remove_temporaries(folder: UPath) -> None:
    """Remove what a killed process left half-written in `folder` and below."""
    for path in list(temporaries(folder)):
        path.unlink(missing_ok=True)


def remove_folder(folder: UPath) -> None:
    """Delete a folder with all that is in it, if it is there, also while others delete in it."""
    while folder.exists():
        with suppress(FileNotFoundError):
            folder.fs.rm(folder.path, recursive=True)


@contextmanager
def naming(path: UPath, what: str) -> Iterator[None]:
    """OSErrors from within say what could not be done, why, and with which path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno is None:
            raise OSError(f"{what}: {reason}: {str(path)!r}") from error
        raise OSError(error.errno, f"{what}: {reason}", str(path)) from error


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _discard(temporary: UPath) -> None:
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: UPath) -> None:
    """Wait until a local folder's renamings are on the disk; a journal keeps the order of those before the last."""
    if (local := local_path(folder)) is not None:
        descriptor = os.open(local, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
