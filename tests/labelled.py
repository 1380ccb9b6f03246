"""Two labelled pictures, and their boxes in every format that is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from wbc.datasets.coco import coco_truth
from wbc.datasets.labels import LabelledPicture
from wbc.datasets.reading import Mark
from wbc.datasets.reading import clean as clean_marks
from wbc.training.detector_data import BoxData

Box = tuple[float, float, float, float]


NAMES = {"RBC": "rbc", "WBC": "wbc"}


WIDTH, HEIGHT = 200, 100


TRUTH: dict[str, list[tuple[str, Box]]] = {
    "p1": [("RBC", (10, 20, 50, 60)), ("WBC", (100, 10, 180, 90))],
    "p2": [("RBC", (0, 0, 40, 40))],
}


def voc(objects: list[tuple[str, Any]]) -> str:
    edges = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        f"<object><name>{name}</name><bndbox>{''.join(f'<{e}>{v}</{e}>' for e, v in zip(edges, box, strict=True))}"
        "</bndbox></object>"
        for name, box in objects
    ]
    return f"<annotation>{''.join(boxes)}</annotation>"


def write(root: Path, truth: dict[str, list[tuple[str, Box]]], form: str) -> Path:
    """A data set below `root` in a format; returns where its annotations are."""
    images = root / "images"
    images.mkdir()
    for stem in truth:
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{stem}.png")
    place = root / "annotations"
    if form in ("voc", "yolo"):
        place.mkdir()
    if form == "voc":
        for stem, objects in truth.items():
            (place / f"{stem}.xml").write_text(voc(objects))
    elif form == "yolo":
        for stem, objects in truth.items():
            (place / f"{stem}.txt").write_text("\n".join(yolo_line(*o) for o in objects))
    elif form == "coco":
        pictures = [
            (f"{stem}.png", WIDTH, HEIGHT, LabelledPicture(images / stem, as_array(o), tuple(n for n, _ in o)))
            for stem, o in truth.items()
        ]
        place.write_text(json.dumps(coco_truth(pictures, list(NAMES))))
    else:
        rows = [
            (f"{stem}.png", x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT, name)
            for stem, objects in truth.items()
            for name, (x0, y0, x1, y1) in objects
        ]
        pd.DataFrame(rows, columns=["image", "xmin", "ymin", "xmax", "ymax", "label"]).to_csv(place, index=False)
    return place


def clean(path: Path, boxes: list[Box], labels: list[str]) -> LabelledPicture:
    """A picture of boxes that can be right."""
    return clean_marks(path, [Mark(path.name, box, label) for box, label in zip(boxes, labels, strict=True)])


def as_array(objects: list[tuple[str, Box]]) -> NDArray[np.float32]:
    return np.array([box for _, box in objects], np.float32).reshape(-1, 4)


def yolo_line(name: str, box: Box) -> str:
    x0, y0, x1, y1 = box
    values = ((x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT)
    return f"{list(NAMES).index(name)} {' '.join(map(str, values))}"


def spec(form: str, **changes: Any) -> BoxData:
    values: dict[str, Any] = {"images": "images", "annotations": "annotations", "names": NAMES, "weight": 1.0}
    return BoxData(form, **values | changes)
