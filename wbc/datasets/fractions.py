"""A CSV file of boxes as fractions of the picture's sides (columns image, xmin, ymin, xmax, ymax, label) in."""

from pathlib import Path

import pandas as pd

from wbc.datasets.labels import LabelledPicture
from wbc.datasets.reading import Mark, Page, labelled


def read_fractions(images: Path, annotations: Path, names: dict[str, str]) -> list[LabelledPicture]:
    """Pictures of such a file; `names` maps its labels to cell types.

    Raises ValueError, naming the file, where a picture is missing or a label is not in `names`.
    """
    pages = []
    for name, rows in pd.read_csv(annotations).groupby("image", sort=True):
        unknown = set(rows["label"]) - set(names)
        if unknown:
            raise ValueError(f"{annotations}: labels {sorted(unknown)} are none of {sorted(names)}")
        boxes = rows[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float).tolist()
        marks = [
            Mark(f"{annotations}:{row + 2}", (x0, y0, x1, y1), names[label])
            for row, (x0, y0, x1, y1), label in zip(rows.index, boxes, rows["label"], strict=True)
        ]
        pages.append(Page(str(name), str(annotations), tuple(marks), in_fractions=True))
    return labelled(images, pages)
