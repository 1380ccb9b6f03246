"""A folder of images becomes `Slide`s."""

import errno
import logging
import os
from collections import deque
from collections.abc import Iterator

from upath import UPath

from wbc.storage.atomic import local_path
from wbc.storage.images import IMAGE_SUFFIXES
from wbc.storage.layout import is_out
from wbc.storage.names import safe_name
from wbc.types import Slide

logger = logging.getLogger(__name__)


def discover(root: UPath) -> list[Slide]:
    """The slides at and below `root`, sorted by `slide_id`: every folder that directly holds images is one.

    `slide_id` is the path below `root` as `safe_name` writes it; for images in `root` itself the root's own name, or
    `%2E` where there are other slides. A folder with neither images nor folders is a slide without fields, and so is
    one that cannot be read (which is logged). Hidden files and folders are passed over, and folders of results (they
    hold `.wbc`). Links are followed, but a local folder is one slide however often it is linked: its real place
    names it, else the first link; the others are logged. Raises FileNotFoundError or NotADirectoryError.
    """
    if not root.exists():
        raise FileNotFoundError(errno.ENOENT, "no such folder of slides", str(root))
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "slides are read from a folder, this is a file", str(root))
    found = dict(_walk(root))
    ids = {parts: safe_name("/".join(parts) or ".") for parts in found}
    if list(found) == [()] and (name := root.resolve().name):
        ids[()] = safe_name(name)
    return sorted((Slide(ids[parts], paths) for parts, paths in found.items()), key=lambda slide: slide.slide_id)


def _walk(root: UPath) -> Iterator[tuple[tuple[str, ...], tuple[UPath, ...]]]:
    """Path parts below `root` and field paths of every slide."""
    seen: set[str] = set()
    folders: deque[tuple[UPath, tuple[str, ...]]] = deque([(root, ())])
    links: deque[tuple[UPath, tuple[str, ...]]] = deque()
    while folders or links:
        folder, parts = folders.popleft() if folders else links.popleft()
        if local_path(folder) is not None:
            real = os.path.realpath(folder.path)
            if real in seen:
                logger.warning("%r is %r again and is not counted twice", str(folder), real)
                continue
            seen.add(real)
        try:
            entries = _entries(folder)
        except OSError as error:
            logger.warning("%r cannot be read: %s", str(folder), error.strerror or error)
            yield parts, ()
            continue
        if parts and is_out(name for name, _, _ in entries):
            continue
        shown = [entry for entry in entries if not entry[0].startswith(".")]
        images = sorted(n for n, is_folder, _ in shown if not is_folder and n.lower().endswith(IMAGE_SUFFIXES))
        below = [entry for entry in shown if entry[1]]
        if images or not below:
            yield parts, tuple(folder / name for name in images)
        for name, _, is_link in below:
            (links if is_link else folders).append((folder / name, (*parts, name)))


def _entries(folder: UPath) -> list[tuple[str, bool, bool]]:
    """Name, whether a folder, and whether a link, of everything in `folder`, sorted by name."""
    if local_path(folder) is not None:
        with os.scandir(folder.path) as entries:
            # os.path.isdir takes a link that leads nowhere, or to itself, for no folder; DirEntry.is_dir raises.
            return sorted((e.name, os.path.isdir(e.path), e.is_symlink()) for e in entries)
    own = folder.path.rstrip("/")
    paths = [
        (entry["name"].rstrip("/"), entry["type"] == "directory") for entry in folder.fs.ls(folder.path, detail=True)
    ]
    # An object store lists a folder's own placeholder among what it holds.
    return sorted((path.rsplit("/", 1)[-1], is_folder, False) for path, is_folder in paths if path != own)
