"""A CSV file of boxes as fractions of the picture's sides (columns image, xmin, ymin, xmax, ymax, label) in."""

from pathlib import Path

import pandas as pd
from PIL import Image

from wbc.datasets.labels import LabelledPicture, clean


def read_fractions(
    images: Path, annotations: Path, names: dict[str, str], leave_out: list[str] | None = None
) -> list[LabelledPicture]:
    """Pictures of such a file; `names` maps its labels to cell types; pictures named in `leave_out` are not read.

    Raises ValueError, naming the file, where a picture is missing or a label is not in `names`.
    """
    labelled = []
    for name, rows in pd.read_csv(annotations).groupby("image", sort=True):
        path = images / str(name)
        if path.stem in (leave_out or []):
            continue
        if not path.is_file():
            raise ValueError(f"{annotations}: picture {path} is missing")
        unknown = set(rows["label"]) - set(names)
        if unknown:
            raise ValueError(f"{annotations}: labels {sorted(unknown)} are none of {sorted(names)}")
        with Image.open(path) as picture:
            width, height = picture.size
        boxes = [
            (x0 * width, y0 * height, x1 * width, y1 * height)
            for x0, y0, x1, y1 in rows[["xmin", "ymin", "xmax", "ymax"]].to_numpy(float)
        ]
        labelled.append(clean(path, boxes, [names[label] for label in rows["label"]]))
    return labelled
