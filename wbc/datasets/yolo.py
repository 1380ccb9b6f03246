"""YOLO annotations (one text file a picture: class, centre and size as fractions) in."""

import math
from pathlib import Path

from PIL import Image

from wbc.datasets.labels import LabelledPicture, clean, find_pictures


def read_yolo(
    images: Path, annotations: Path, classes: list[str], stems: list[str] | None = None
) -> list[LabelledPicture]:
    """Pictures of a YOLO folder; `classes` names its class numbers, `stems` keeps a split of the files.

    Raises ValueError, naming file and line, where a line is not five numbers, its class is unknown, or a picture or
    its text is missing.
    """
    pictures = find_pictures(images)
    file_names = sorted(stems) if stems is not None else sorted(p.stem for p in annotations.glob("*.txt"))
    labelled = []
    for stem in file_names:
        path = annotations / f"{stem}.txt"
        if stem not in pictures or not path.is_file():
            raise ValueError(f"{path}: this file or its picture in {images} is missing")
        with Image.open(pictures[stem]) as picture:
            width, height = picture.size
        boxes, labels = [], []
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                class_number, (x, y, w, h) = int(line.split()[0]), map(float, line.split()[1:])
            except (ValueError, IndexError) as error:
                raise ValueError(f"{path}:{number}: not a class and four numbers: {line!r}") from error
            if not 0 <= class_number < len(classes) or not all(map(math.isfinite, (x, y, w, h))):
                raise ValueError(f"{path}:{number}: not a box of {len(classes)} classes: {line!r}")
            cx, cy, bw, bh = x * width, y * height, w * width, h * height
            boxes.append((cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2))
            labels.append(classes[class_number])
        labelled.append(clean(pictures[stem], boxes, labels))
    return labelled
