"""Pictures with labelled boxes: the one form that every annotation format is read into."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from wbc.cells.geometry import RED_CELL_UM
from wbc.storage.images import IMAGE_SUFFIXES

Picture = Path | UPath


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """One annotated picture: `boxes` float32 (N,4) x0,y0,x1,y1 in picture pixels and as many `labels` (cell types).

    Where they are known, its scale and the slide that it is a field of; and `measurements`, a row of named numbers for
    each box, or none at all. `path` may be in an object store.
    """

    path: Picture
    boxes: NDArray[np.float32]
    labels: tuple[str, ...]
    um_per_px: float | None = None
    slide_id: str = ""
    measurements: tuple[Mapping[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.labels), 4):
            raise ValueError(f"{self.path}: {self.boxes.shape} boxes for {len(self.labels)} labels")
        if self.measurements and len(self.measurements) != len(self.labels):
            raise ValueError(
                f"{self.path}: {len(self.measurements)} rows of measurements for {len(self.labels)} labels"
            )

    @property
    def source(self) -> str:
        """The slide that it is a field of, in words; "" where that is not known."""
        return f"slide {self.slide_id}" if self.slide_id else ""


@contextmanager
def opened(path: Picture) -> Iterator[Image.Image]:
    """A picture's file, open by Pillow. Raises OSError."""
    with path.open("rb") as file, Image.open(file) as picture:
        yield picture


def name_in(images: Path, path: Picture) -> str:
    """What annotations call a picture below the folder `images`. Raises ValueError where it lies elsewhere."""
    return Path(str(path)).relative_to(images).as_posix()


def rows_of(picture: LabelledPicture) -> list[tuple[list[float], str, Mapping[str, float]]]:
    """A picture's boxes with their labels and measurements."""
    measurements = picture.measurements or ({},) * len(picture.labels)
    return list(zip(picture.boxes.tolist(), picture.labels, measurements, strict=True))


def size_of(path: Picture) -> tuple[int, int]:
    """A picture's width and height in px. Raises ValueError for what is no picture."""
    try:
        with opened(path) as picture:
            return picture.size
    except OSError as error:
        raise ValueError(f"{path}: no picture ({error})") from error


def find_pictures(folder: Path) -> dict[str, Path]:
    """The picture files of a folder by their stem; annotations may lie beside them."""
    return {p.stem: p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()}


def red_cell_um_per_px(pictures: list[LabelledPicture]) -> float:
    """Scale of a data set in µm per pixel, from its median red cell (7.2 µm across, between width and height).

    Raises ValueError where no picture has a red cell.
    """
    boxes = [p.boxes[[label == "rbc" for label in p.labels]] for p in pictures]
    every = np.concatenate([*boxes, np.zeros((0, 4), np.float32)])
    if not len(every):
        raise ValueError(f"no rbc among {len(pictures)} pictures: cannot tell their scale")
    return RED_CELL_UM / float(np.median(np.sqrt((every[:, 2] - every[:, 0]) * (every[:, 3] - every[:, 1]))))
