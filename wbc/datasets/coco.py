"""COCO annotations (one JSON file a set) in and out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from upath import UPath

from wbc.datasets.labels import LabelledPicture, cell_type_of, clean, finite, picture_at, read_json
from wbc.storage.atomic import write_whole


def read_coco(images: Path, annotations: Path, names: dict[str, str] | None = None) -> list[LabelledPicture]:
    """Pictures of a COCO file; `names` maps its categories to cell types (as they stand where it is None).

    Raises ValueError, naming the file, where it is no COCO, a picture is missing, a category is not in `names` or a
    box is not four numbers.
    """
    truth = read_json(annotations)
    try:
        category = {c["id"]: c["name"] for c in truth["categories"]}
        files = {image["id"]: image["file_name"] for image in truth["images"]}
        of_image: dict[Any, list[tuple[str, Sequence[object]]]] = {image: [] for image in files}
        for number, annotation in enumerate(truth["annotations"], 1):
            where = f"{annotations}: annotation {annotation.get('id', f'number {number}')}"
            label = cell_type_of(category[annotation["category_id"]], names, where)
            if len(annotation["bbox"]) != 4:
                raise ValueError(f"{where}: box {annotation['bbox']} is not four numbers")
            of_image[annotation["image_id"]].append((label, finite(annotation["bbox"], where)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{annotations}: not COCO annotations ({error!r})") from error
    return [_picture(picture_at(images, str(name), annotations), of_image[image]) for image, name in files.items()]


def _picture(path: Path, objects: Sequence[tuple[str, Sequence[Any]]]) -> LabelledPicture:
    boxes = [(x, y, x + w, y + h) for _, (x, y, w, h) in objects]
    return clean(path, boxes, [label for label, _ in objects])


def write_coco(annotations: Path, pictures: Sequence[LabelledPicture], images: Path) -> None:
    """Pictures below the folder `images` as a COCO file; its categories are their labels, in alphabetical order."""
    sized = []
    for picture in pictures:
        with Image.open(picture.path) as opened:
            width, height = opened.size
        sized.append((picture.path.relative_to(images).as_posix(), width, height, picture))
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
