"""What every annotation format is read into, and how: pages of marks, held against the pictures that there are.

Each format has a function that tells its pages, without opening a picture. `labelled` finds their pictures. With a list
of `faults` what is wrong is written there, with file and line or id, and the rest is kept; without, it raises.
"""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wbc.cells.geometry import box_iou
from wbc.datasets.labels import LabelledPicture, Picture, find_pictures, size_of

Box = tuple[float, float, float, float]
Faults = list[str] | None
Names = Mapping[str, str] | None
Row = TypeVar("Row")

DOUBLE_IOU = 0.85
OUTSIDE_PX = 1.0  # formats round, and some count from 1
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mark:
    """One box x0,y0,x1,y1 and the cell type that it is given; `where` is file and line or id."""

    where: str
    box: Box
    label: str


@dataclass(frozen=True, slots=True)
class Page:
    """What annotations tell of one picture: `name` is its file below the folder of pictures, or, `by_stem`, its stem.

    Boxes are in its pixels, or, `in_fractions`, in parts of its sides. `slide_id` is its slide's, where that is told.
    """

    name: str
    where: str
    marks: tuple[Mark, ...]
    by_stem: bool = False
    in_fractions: bool = False
    slide_id: str = ""


@contextmanager
def passing_over(faults: Faults) -> Iterator[None]:
    """A ValueError from within becomes a line of `faults`, where there are any."""
    try:
        yield
    except ValueError as error:
        if faults is None:
            raise
        faults.append(str(error))


def read_marks(rows: Iterable[Row], read: Callable[[Row], Mark], faults: Faults) -> tuple[Mark, ...]:
    """The marks of rows, without those that cannot be read."""
    marks = []
    for row in rows:
        with passing_over(faults):
            marks.append(read(row))
    return tuple(marks)


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises ValueError, naming it, where it cannot be read, is no JSON or nests too deep."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def picture_at(images: Path, name: str, where: object) -> Path:
    """The picture `name` below `images`. Raises ValueError where annotations tell of one that is not there."""
    path = images / name
    if not path.is_file():
        raise ValueError(f"{where}: picture {path} is missing")
    return path


def cell_type_of(name: object, names: Names, where: str) -> str:
    """The cell type that an annotation's `name` means: by `names`, or as it stands where that is None.

    Raises ValueError, beginning with `where`, for a name that is none.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: label {name!r} is not a name")
    if names is not None and name not in names:
        raise ValueError(f"{where}: label {name!r} is none of {sorted(names)}")
    return name if names is None else names[name]


def finite(values: Sequence[object], where: str) -> list[float]:
    """Numbers as they are. Raises ValueError, beginning with `where`, for what is none, or not finite."""
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) != len(values):
        raise ValueError(f"{where}: {list(values)} are not finite numbers")
    return [float(n) for n in numbers]


def around(points: Iterable[tuple[float, float]]) -> Box:
    """The smallest box around points (x, y)."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def around_ellipse(centre: tuple[float, float], radii: tuple[float, float], angle: float) -> Box:
    """The smallest box around an ellipse that is turned by `angle` radians."""
    (cx, cy), (rx, ry) = centre, radii
    half_x = math.hypot(rx * math.cos(angle), ry * math.sin(angle))
    half_y = math.hypot(rx * math.sin(angle), ry * math.cos(angle))
    return cx - half_x, cy - half_y, cx + half_x, cy + half_y


def turned(box: Box, angle: float, pivot: tuple[float, float]) -> Box:
    """The smallest box around a box that is turned by `angle` radians, clockwise on the screen, about a pivot."""
    (x0, y0, x1, y1), (px, py) = box, pivot
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(x - px, y - py) for x in (x0, x1) for y in (y0, y1)]
    return around((px + x * cos - y * sin, py + x * sin + y * cos) for x, y in corners)


def labelled(images: Path, pages: Iterable[Page], faults: Faults = None) -> list[LabelledPicture]:
    """The pages' pictures below the folder `images`, with the boxes that can be right (`clean`).

    Raises ValueError, without `faults`, where a picture is missing.
    """
    stems: dict[str, dict[str, Path]] = {}
    pictures: list[LabelledPicture] = []
    seen: set[Path] = set()
    for page in pages:
        with passing_over(faults):
            path = _picture_of(page, images, stems)
            if path in seen:
                raise ValueError(f"{page.where}: picture {page.name} is there twice")
            seen.add(path)
            pictures.append(replace(clean(path, _in_pixels(page, path), faults), slide_id=page.slide_id))
    return pictures


def _picture_of(page: Page, images: Path, stems: dict[str, dict[str, Path]]) -> Path:
    if not page.by_stem:
        return picture_at(images, page.name, page.where)
    folder, _, stem = page.name.rpartition("/")
    if folder not in stems:
        stems[folder] = find_pictures(images / folder) if (images / folder).is_dir() else {}
    if stem not in stems[folder]:
        raise ValueError(f"{page.where}: there is no picture of this name in {images / folder}")
    return stems[folder][stem]


def _in_pixels(page: Page, path: Path) -> Sequence[Mark]:
    if not page.in_fractions:
        return page.marks
    w, h = size_of(path)
    return [Mark(m.where, (m.box[0] * w, m.box[1] * h, m.box[2] * w, m.box[3] * h), m.label) for m in page.marks]


def clean(path: Picture, marks: Sequence[Mark], faults: Faults = None) -> LabelledPicture:
    """A picture without the marks that cannot be right: those of no area, and all but one of doubles.

    A double has the same label and an IoU over 0.85. Each mark left out is named in the log, or in `faults`; with these
    the picture is opened, too, and marks outside of it are left out, those that leave it cut.
    """
    shown = [mark for mark in marks if _has_area(mark, path, faults)]
    if faults is not None:
        shown = list(_inside(shown, size_of(path), faults))
    boxes = np.array([mark.box for mark in shown], np.float32).reshape(-1, 4)
    rows: list[int] = []
    for i, mark in enumerate(shown):
        same = [j for j in rows if shown[j].label == mark.label]
        if same and box_iou(boxes[i : i + 1], boxes[same]).max() > DOUBLE_IOU:
            _tell(f"{mark.where}: box of {mark.label} in {path.name} is drawn twice: left out", logging.INFO, faults)
        else:
            rows.append(i)
    return LabelledPicture(path, boxes[rows], tuple(shown[i].label for i in rows))


def _has_area(mark: Mark, path: Picture, faults: Faults) -> bool:
    x0, y0, x1, y1 = np.array(mark.box, np.float32)
    if x1 > x0 and y1 > y0:
        return True
    _tell(f"{mark.where}: box of {mark.label} in {path.name} has no area: left out", logging.WARNING, faults)
    return False


def _inside(marks: Sequence[Mark], size: tuple[int, int], faults: list[str]) -> Iterator[Mark]:
    """Marks cut to a picture of (width, height), without those outside of it."""
    w, h = size
    for mark in marks:
        x0, y0, x1, y1 = mark.box
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(w)), min(y1, float(h)))
        if box[0] >= box[2] or box[1] >= box[3]:
            faults.append(f"{mark.where}: box of {mark.label} lies outside of the picture of {w}×{h} px: left out")
            continue
        if max(abs(own - cut) for own, cut in zip(mark.box, box, strict=True)) > OUTSIDE_PX:
            faults.append(f"{mark.where}: box of {mark.label} leaves the picture of {w}×{h} px: cut")
        yield Mark(mark.where, box, mark.label)


def _tell(line: str, level: int, faults: Faults) -> None:
    if faults is None:
        log.log(level, "%s", line)
    else:
        faults.append(line)
