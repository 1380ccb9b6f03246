"""A folder of images becomes `Slide`s, and what is passed over there is named."""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from upath import UPath

from wbc.storage.atomic import local_path
from wbc.storage.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, words
from wbc.storage.layout import results_among
from wbc.storage.names import address, encodable, safe_name
from wbc.types import FieldPaths, Slide

Parts = tuple[str, ...]
Kind = Literal["unread_picture", "unreadable_folder", "linked_again", "results", "hidden", "other_file"]
MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Something that no count reads: its path below SLIDES, a folder's with `/` at its end, of what kind, and why."""

    path: str
    kind: Kind
    why: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """All that lies in and below a folder: its slides, sorted by `slide_id`, and what is passed over, by path."""

    slides: tuple[Slide, ...]
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    is_folder: bool
    is_link: bool


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a folder holds: names of its fields, folders to look into, and folders with results of a count."""

    fields: tuple[str, ...]
    below: tuple[_Entry, ...]
    passed_over: tuple[tuple[str, Kind], ...]
    results: tuple[str, ...]

    @property
    def is_slide(self) -> bool:
        return bool(self.fields) or not (self.below or self.results)

    def named_results(self, path: str) -> list[str]:
        """The paths of what is passed over as results, in this folder at `path`: all of it where nothing else is."""
        return [f"{path}{name}/" for name in self.results] if self.fields or self.below else [path] * bool(self.results)


def discover(root: UPath) -> list[Slide]:
    """The slides at and below `root`, as `survey` finds them."""
    return list(survey(root).slides)


def survey(root: UPath) -> Survey:
    """The slides at and below `root`, every folder that directly holds images, and whatever else lies there.

    `slide_id` is the path below `root` as `safe_name` writes it. Images in `root` itself are a slide with the root's
    own name; `%2E` where it has none, or a folder in it has the same. A folder with neither images nor folders is a
    slide without fields, and so is one that cannot be read. Passed over are hidden files and folders, the folders in an
    OUT that results go to, and files that are no images by their names. Links are followed, but a local folder is one
    slide however often it is linked: its real place names it, else the first link.

    Raises FileNotFoundError or NotADirectoryError, another OSError where `root` cannot be read, ValueError where it
    holds no image at all, or lies where results of a count go.
    """
    if not root.exists():
        raise FileNotFoundError(errno.ENOENT, "no such folder of slides", str(root))
    if not root.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "slides are read from a folder, this is a file", str(root))
    _check_holds_no_results(root)
    passed_over: list[PassedOver] = []
    found = dict(_walk(root, passed_over.append))
    passed_over = [replace(passed, path=encodable(passed.path)) for passed in passed_over]
    passed_over.sort(key=lambda passed: passed.path)
    if not any(found.values()):
        raise ValueError(f"no picture to count in {str(root)!r} or below{_instead(passed_over)}")
    ids = {parts: safe_name("/".join(parts)) for parts in found if parts}
    name = safe_name(root.resolve().name or ".")
    ids[()] = safe_name(".") if name in ids.values() else name
    slides = [Slide(ids[parts], paths, source=address(paths.folder)) for parts, paths in found.items()]
    return Survey(tuple(sorted(slides, key=lambda slide: slide.slide_id)), tuple(passed_over))


def fields_added(slide: Slide) -> tuple[str, ...]:
    """The names of the fields that came to a slide's folder since it was surveyed; none where that cannot be told.

    Of a slide that is made of some of a folder's fields it cannot.
    """
    fields = slide.field_paths
    if not isinstance(fields, FieldPaths) or fields.is_part:
        return ()
    folder = fields.folder
    try:
        if local_path(folder) is None:
            folder.fs.invalidate_cache(folder.path)  # which would list what the survey saw
        return tuple(sorted(set(_read(folder).fields).difference(slide.field_names)))
    except Exception:  # every fsspec back end has its own
        return ()


def is_gone(source: str) -> bool:
    """Whether no slide is at an address any more. False where that cannot be told.

    That is so where its file system does not answer, and where the nearest folder above it that is there is empty, as
    the place of a disk that is not mounted is.
    """
    if "\\udc" in source:  # a name that a table cannot hold
        return False
    try:
        folder = UPath(source)
        if folder.is_dir():
            return not _read(folder).is_slide
        above = next((parent for parent in folder.parents if parent.exists()), None)
        return above is not None and any(True for _ in above.iterdir())
    except Exception:  # every fsspec back end has its own
        return False


def _check_holds_no_results(root: UPath) -> None:
    """Raises ValueError where `root` lies in a folder of an OUT that results go to: drawings would be counted."""
    folder = root.resolve()
    for parent in folder.parents:
        if folder.name in results_among((".wbc", folder.name)) and (parent / ".wbc").exists():
            raise ValueError(f"SLIDES {str(root)!r} lies among the results of a count in {str(parent)!r}")
        folder = parent


def _instead(passed_over: list[PassedOver]) -> str:
    """What a folder without images holds instead."""
    if not passed_over:
        return ": it is empty"
    more = len(passed_over) - MOST_NAMED
    named = ", ".join(passed.path + (f" ({passed.why})" if passed.why else "") for passed in passed_over[:MOST_NAMED])
    return f"; passed over: {named}" + (f" and {more} more" if more > 0 else "")


def _walk(root: UPath, pass_over: Callable[[PassedOver], None]) -> Iterator[tuple[Parts, FieldPaths]]:
    """Path parts below `root` of every slide, and its fields."""
    seen: set[str] = set()
    folders: deque[tuple[UPath, Parts]] = deque([(root, ())])
    links: deque[tuple[UPath, Parts]] = deque()
    while folders or links:
        folder, parts = folders.popleft() if folders else links.popleft()
        path = "/".join((*parts, ""))
        if local_path(folder) is not None:
            real = os.path.realpath(folder.path)
            if real in seen:
                pass_over(PassedOver(path, "linked_again", f"is {real}"))
                continue
            seen.add(real)
        try:
            inside = _read(folder)
        except OSError as error:
            if not parts:
                raise
            pass_over(PassedOver(path, "unreadable_folder", words(error)))
            yield parts, FieldPaths(folder, ())
            continue
        for name, kind in inside.passed_over:
            pass_over(PassedOver(path + name, kind))
        for results in inside.named_results(path):
            pass_over(PassedOver(results, "results"))
        if inside.is_slide:
            yield parts, FieldPaths(folder, inside.fields)
        for entry in inside.below:
            (links if entry.is_link else folders).append((folder / entry.name, (*parts, entry.name)))


def _read(folder: UPath) -> _Folder:
    """What a folder holds. Raises OSError."""
    entries = _entries(folder)
    results = results_among([entry.name for entry in entries if entry.is_folder])
    fields, below = [], []
    passed_over: list[tuple[str, Kind]] = []
    for entry in entries:
        if entry.name in results:
            continue
        if entry.name.startswith("."):
            passed_over.append((entry.name + "/" * entry.is_folder, "hidden"))
        elif entry.is_folder:
            below.append(entry)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            fields.append(entry.name)
        else:
            is_picture = entry.name.lower().endswith(UNREAD_SUFFIXES)
            passed_over.append((entry.name, "unread_picture" if is_picture else "other_file"))
    return _Folder(tuple(fields), tuple(below), tuple(passed_over), tuple(sorted(results)))


def _entries(folder: UPath) -> list[_Entry]:
    """All that is in `folder`, sorted by name."""
    if local_path(folder) is not None:
        with os.scandir(folder.path) as entries:
            # os.path.isdir takes a link that leads nowhere, or to itself, for no folder; DirEntry.is_dir raises.
            here = [_Entry(e.name, os.path.isdir(e.path), e.is_symlink()) for e in entries]
    else:
        own = folder.path.rstrip("/")
        listed = folder.fs.ls(folder.path, detail=True)
        paths = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in listed]
        # An object store lists a folder's own placeholder among what it holds.
        here = [_Entry(path.rsplit("/", 1)[-1], is_folder, False) for path, is_folder in paths if path != own]
    return sorted(here, key=lambda entry: entry.name)
