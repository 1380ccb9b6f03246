"""Pictures with labelled boxes: the one form that every annotation format is read into."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from wbc.cells.geometry import RED_CELL_UM, box_iou
from wbc.storage.images import IMAGE_SUFFIXES

DOUBLE_IOU = 0.85
Picture = Path | UPath
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """One annotated picture: `boxes` float32 (N,4) x0,y0,x1,y1 in picture pixels and as many `labels` (cell types).

    Where they are known, its scale and the slide that it is a field of. `path` may be in an object store.
    """

    path: Picture
    boxes: NDArray[np.float32]
    labels: tuple[str, ...]
    um_per_px: float | None = None
    slide_id: str = ""

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.labels), 4):
            raise ValueError(f"{self.path}: {self.boxes.shape} boxes for {len(self.labels)} labels")


@contextmanager
def opened(path: Picture) -> Iterator[Image.Image]:
    """A picture's file, open by Pillow. Raises OSError."""
    with path.open("rb") as file, Image.open(file) as picture:
        yield picture


def name_in(images: Path, path: Picture) -> str:
    """What annotations call a picture below the folder `images`. Raises ValueError where it lies elsewhere."""
    return Path(str(path)).relative_to(images).as_posix()


def find_pictures(folder: Path) -> dict[str, Path]:
    """The picture files of a folder by their stem; annotations may lie beside them."""
    return {p.stem: p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()}


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises ValueError, naming it, where it cannot be read, is no JSON or nests too deep."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def picture_at(images: Path, name: str, annotations: Path) -> Path:
    """The picture `name` below `images`. Raises ValueError where `annotations` tell of one that is not there."""
    path = images / name
    if not path.is_file():
        raise ValueError(f"{annotations}: picture {path} is missing")
    return path


def cell_type_of(name: object, names: Mapping[str, str] | None, where: str) -> str:
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


def clean(path: Path, boxes: list[tuple[float, float, float, float]], labels: list[str]) -> LabelledPicture:
    """A picture without the boxes that cannot be right: those of no area, and all but one of doubles.

    A double has the same label and an IoU over 0.85. Each box left out is named in the log.
    """
    rows: list[int] = []
    array = np.array(boxes, np.float32).reshape(-1, 4)
    for i, (box, label) in enumerate(zip(array, labels, strict=True)):
        if box[2] <= box[0] or box[3] <= box[1]:
            log.warning("%s: box %d (%s) has no area: left out", path.name, i, label)
            continue
        same = [j for j in rows if labels[j] == label]
        if same and box_iou(box[None], array[same]).max() > DOUBLE_IOU:
            log.info("%s: box %d (%s) is drawn twice: left out", path.name, i, label)
            continue
        rows.append(i)
    return LabelledPicture(path, array[rows], tuple(labels[i] for i in rows))


def red_cell_um_per_px(pictures: list[LabelledPicture]) -> float:
    """Scale of a data set in µm per pixel, from its median red cell (7.2 µm across, between width and height).

    Raises ValueError where no picture has a red cell.
    """
    boxes = [p.boxes[[label == "rbc" for label in p.labels]] for p in pictures]
    every = np.concatenate([*boxes, np.zeros((0, 4), np.float32)])
    if not len(every):
        raise ValueError(f"no rbc among {len(pictures)} pictures: cannot tell their scale")
    return RED_CELL_UM / float(np.median(np.sqrt((every[:, 2] - every[:, 0]) * (every[:, 3] - every[:, 1]))))
