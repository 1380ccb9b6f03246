"""What `benchmarks.attack` does to a tree of slides that was counted, and what the next run into that OUT must tell.

Each act gets the folder of slides, with one slide `s1` in it, and whether a coin fell on heads. It gives back the
folder that is counted next, which slides of that are to be counted, and words that the run must say to a person.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wbc.storage.names import safe_name

UNREAD_FORMATS = {".webp": "WEBP", ".gif": "GIF", ".jp2": "JPEG2000", ".jfif": "JPEG"}


@dataclass(frozen=True, slots=True)
class Tree:
    """The folder to count, its slides that are to have `s1`'s fields in OUT, and the words that are to be said."""

    root: Path
    slide_ids: tuple[str, ...]
    words: tuple[str, ...]
    fields_gone: tuple[str, ...] = ()


def moved_below(root: Path, heads: bool) -> Tree:
    """The slide's folder now lies in another."""
    (root / "batch").mkdir()
    (root / "s1").rename(root / "batch" / "s1")
    return Tree(root, (safe_name("batch/s1"),), ("s1", "there any more", "wbc prune"))


def renamed(root: Path, heads: bool) -> Tree:
    """The slide's folder has another name."""
    (root / "s1").rename(root / "s2")
    return Tree(root, ("s2",), ("s1", "there any more", "wbc prune"))


def of_another_folder(root: Path, heads: bool) -> Tree:
    """Another folder of slides has one of the same name: it comes by its own path, or by a link that led elsewhere."""
    other = root.with_name("other")
    shutil.copytree(root, other)
    if heads:
        link = root.with_name("today")
        link.symlink_to(other)
        return Tree(link, ("s1",), (str(root / "s1"), str(other / "s1"), "--rename"))
    return Tree(other, ("s1",), (str(root / "s1"), str(other / "s1"), "--rename"))


def from_farther_up(root: Path, heads: bool) -> Tree:
    """The same slides, reached from another folder above or below."""
    if heads:
        return Tree(root / "s1", ("s1",), ())
    above = root.parent / "above"
    above.mkdir()
    root.rename(above / "slides")
    return Tree(above, (safe_name("slides/s1"),), ("s1", "there any more"))


def emptied(root: Path, heads: bool) -> Tree:
    """Nothing is there, as where a disk is not mounted: the folder is empty, or gone."""
    shutil.rmtree(root)
    if heads:
        root.mkdir()
    return Tree(root, ("s1",), (str(root), "no picture" if heads else "no such folder"))


def linked_again(root: Path, heads: bool) -> Tree:
    """A link leads to the slide."""
    (root / "s2").symlink_to(root / "s1")
    return Tree(root, ("s1",), ("s2", "there already"))


def copied(root: Path, heads: bool) -> Tree:
    """The slide is there twice."""
    shutil.copytree(root / "s1", root / "s2")
    return Tree(root, ("s1", "s2"), ("s1", "s2", "again"))


def pictures_in_the_root(root: Path, heads: bool) -> Tree:
    """The slide's fields lie in the folder of slides too."""
    for field in (root / "s1").iterdir():
        shutil.copy(field, root)
    return Tree(root, ("s1", root.name), ("s1", root.name, "again"))


def of_a_kind_not_read(root: Path, heads: bool) -> Tree:
    """A field more, in a format that is not read."""
    field = min((root / "s1").iterdir())
    suffix = sorted(UNREAD_FORMATS)[len(field.suffix) % 4 if heads else 2]
    with Image.open(field) as picture:
        name = f"field-9{suffix}"
        picture.convert("RGB").save(root / "s1" / name, UNREAD_FORMATS[suffix])
    return Tree(root, ("s1",), (f"s1/{name}",))


def hidden(root: Path, heads: bool) -> Tree:
    """A field's name begins with a full stop."""
    field = min((root / "s1").iterdir())
    field.rename(field.with_name(f".{field.name}"))
    return Tree(root, ("s1",), (f".{field.name}",), (field.stem,))


def results_in_the_slide(root: Path, heads: bool) -> Tree:
    """Somebody put an OUT into the slide's folder, with drawings of its fields."""
    drawings = root / "s1" / "annotated" / "s1"
    drawings.mkdir(parents=True)
    (root / "s1" / ".wbc").mkdir()
    for field in [path for path in (root / "s1").iterdir() if path.is_file()]:
        shutil.copy(field, drawings)
    return Tree(root, ("s1",), ("annotated",))


def among_results(root: Path, heads: bool) -> Tree:
    """The folder that is named is one that results go to."""
    folder = root.parent / "out" / "annotated"
    shutil.copytree(root, folder / "slides" if heads else folder)
    return Tree(folder, ("s1",), (str(folder), "results"))


ACTS: tuple[Callable[[Path, bool], Tree], ...] = (
    moved_below,
    renamed,
    of_another_folder,
    from_farther_up,
    emptied,
    linked_again,
    copied,
    pictures_in_the_root,
    of_a_kind_not_read,
    hidden,
    results_in_the_slide,
    among_results,
)
