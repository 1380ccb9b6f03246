"""COCO annotations (one JSON file a set) in and out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.datasets.labels import LabelledPicture, cell_type_of, clean, finite, name_in, opened, picture_at, read_json
from wbc.storage.atomic import write_whole

Box = tuple[float, float, float, float]


def read_coco(images: Path, annotations: Path, names: Mapping[str, str] | None = None) -> list[LabelledPicture]:
    """Pictures of a COCO file; `names` maps its categories to cell types (as they stand where it is None).

    Raises ValueError, naming the file, where it is no COCO, a picture is missing, a category is not in `names` or a
    box is not four numbers.
    """
    return [
        clean(picture_at(images, str(image["file_name"]), annotations), boxes, labels)
        for image, boxes, labels in _entries(read_json(annotations), str(annotations), names)
    ]


def labelled_boxes(truth: Any, where: str) -> Iterator[tuple[dict[str, Any], NDArray[np.float32], tuple[str, ...]]]:
    """The images of COCO's dictionary, with boxes float32 (N,4) x0,y0,x1,y1 and labels of each, as they stand.

    Raises ValueError, beginning with `where`, for what is no COCO.
    """
    for image, boxes, labels in _entries(truth, where, None):
        yield image, np.array(boxes, np.float32).reshape(-1, 4), tuple(labels)


def _entries(
    truth: Any, where: str, names: Mapping[str, str] | None
) -> list[tuple[dict[str, Any], list[Box], list[str]]]:
    try:
        category = {c["id"]: c["name"] for c in truth["categories"]}
        entries: dict[Any, tuple[dict[str, Any], list[Box], list[str]]] = {
            image["id"]: ({"file_name": image["file_name"], **image}, [], []) for image in truth["images"]
        }
        for number, annotation in enumerate(truth["annotations"], 1):
            here = f"{where}: annotation {annotation.get('id', f'number {number}')}"
            label = cell_type_of(category[annotation["category_id"]], names, here)
            if len(annotation["bbox"]) != 4:
                raise ValueError(f"{here}: box {annotation['bbox']} is not four numbers")
            x, y, w, h = finite(annotation["bbox"], here)
            _, boxes, labels = entries[annotation["image_id"]]
            boxes.append((x, y, x + w, y + h))
            labels.append(label)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not COCO annotations ({error!r})") from error
    return list(entries.values())


def write_coco(annotations: Path, pictures: Sequence[LabelledPicture], images: Path) -> None:
    """Pictures below the folder `images` as a COCO file; its categories are their labels, in alphabetical order."""
    sized = []
    for picture in pictures:
        with opened(picture.path) as pixels:
            width, height = pixels.size
        sized.append((name_in(images, picture.path), width, height, picture))
    categories = sorted({label for picture in pictures for label in picture.labels})
    write_whole(UPath(annotations), json.dumps(coco_truth(sized, categories)).encode())


def coco_truth(pictures: list[tuple[str, int, int, LabelledPicture]], categories: list[str]) -> dict[str, Any]:
    """COCO's dictionary of pictures given as (file name, width, height, labels); ids count from 1."""
    ids = {name: i for i, name in enumerate(categories, 1)}
    truth: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    for number, (file_name, width, height, picture) in enumerate(pictures, 1):
        truth["images"].append({"id": number, "file_name": file_name, "width": width, "height": height})
        for (x0, y0, x1, y1), label in zip(picture.boxes.tolist(), picture.labels, strict=True):
            w, h = x1 - x0, y1 - y0
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": ids[label],
                    "bbox": [x0, y0, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return truth
