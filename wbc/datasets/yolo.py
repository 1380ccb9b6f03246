"""YOLO annotations (one text file a picture: class, centre and size as fractions) in."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from wbc.datasets.labels import LabelledPicture
from wbc.datasets.reading import Faults, Mark, Names, Page, cell_type_of, labelled, passing_over, read_marks

CLASSES = "classes.txt"


def read_yolo(
    images: Path, annotations: Path, classes: Sequence[str], stems: Sequence[str] | None = None
) -> list[LabelledPicture]:
    """Pictures of a YOLO folder; `classes` names its class numbers, `stems` keeps a split of the files.

    Raises ValueError, naming file and line, where a line is not five numbers, its class is unknown, or a picture or
    its text is missing.
    """
    return labelled(images, yolo_pages(annotations, classes, stems=stems))


def yolo_pages(
    annotations: Path,
    classes: Sequence[str],
    names: Names = None,
    stems: Sequence[str] | None = None,
    faults: Faults = None,
) -> list[Page]:
    """The pages of a YOLO folder's files; `names` maps its `classes`. Raises ValueError, naming file and line."""
    pages = []
    found = sorted(p.stem for p in annotations.glob("*.txt") if p.name != CLASSES)
    for stem in sorted(stems) if stems is not None else found:
        path = annotations / f"{stem}.txt"
        with passing_over(faults):
            marks = read_marks(_lines(path), partial(_mark, classes, names), faults)
            pages.append(Page(stem, str(path), marks, by_stem=True, in_fractions=True))
    return pages


def class_names(*folders: Path) -> list[str]:
    """The names of class numbers, from `classes.txt` in the first of the folders that has it. Raises ValueError."""
    for folder in folders:
        if (folder / CLASSES).is_file():
            return (folder / CLASSES).read_text().split()
    raise ValueError(f"{folders[0]}: no {CLASSES} in or beside it names its class numbers")


def _lines(path: Path) -> list[tuple[str, str]]:
    """The lines, each with where it stands."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    return [(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]


def _mark(classes: Sequence[str], names: Names, row: tuple[str, str]) -> Mark:
    where, line = row
    try:
        class_number, (x, y, w, h) = int(line.split()[0]), map(float, line.split()[1:])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{where}: not a class and four numbers: {line!r}") from error
    if not 0 <= class_number < len(classes) or not all(map(math.isfinite, (x, y, w, h))):
        raise ValueError(f"{where}: not a box of {len(classes)} classes: {line!r}")
    return Mark(where, (x - w / 2, y - h / 2, x + w / 2, y + h / 2), cell_type_of(classes[class_number], names, where))
