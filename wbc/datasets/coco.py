"""COCO annotations (one JSON file a set) in and out."""

import json
from pathlib import Path
from typing import Any

from wbc.datasets.labels import LabelledPicture, clean


def read_coco(images: Path, annotations: Path, names: dict[str, str] | None = None) -> list[LabelledPicture]:
    """Pictures of a COCO file; `names` maps its categories to cell types (as they stand where it is None).

    Raises ValueError, naming the file, where it is no COCO, a picture is missing or a category is not in `names`.
    """
    try:
        truth = json.loads(annotations.read_text())
        category = {c["id"]: c["name"] for c in truth["categories"]}
        of_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
        for annotation in truth["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{annotations}: not COCO annotations ({error!r})") from error
    read = []
    for image in truth["images"]:
        path = images / image["file_name"]
        if not path.is_file():
            raise ValueError(f"{annotations}: picture {path} is missing")
        boxes, labels = [], []
        for annotation in of_image[image["id"]]:
            name = category[annotation["category_id"]]
            if names is not None and name not in names:
                raise ValueError(f"{annotations}: category {name!r} is none of {sorted(names)}")
            x, y, w, h = annotation["bbox"]
            boxes.append((x, y, x + w, y + h))
            labels.append(names[name] if names is not None else name)
        read.append(clean(path, boxes, labels))
    return read


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
