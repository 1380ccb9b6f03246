"""COCO annotations (one JSON file a set) in and out."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from upath import UPath

from wbc.datasets.labels import LabelledPicture, name_in, rows_of, size_of
from wbc.datasets.reading import (
    Faults,
    Mark,
    Names,
    Page,
    cell_type_of,
    finite,
    labelled,
    passing_over,
    read_json,
    read_marks,
)
from wbc.storage.atomic import write_whole


def read_coco(images: Path, annotations: Path, names: Names = None) -> list[LabelledPicture]:
    """Pictures of a COCO file; `names` maps its categories to cell types (as they stand where it is None).

    Raises ValueError, naming the file, where it is no COCO, a picture is missing, a category is not in `names` or a
    box is not four numbers.
    """
    return labelled(images, coco_pages(annotations, names))


def coco_pages(annotations: Path, names: Names = None, faults: Faults = None) -> list[Page]:
    """The pages of a COCO file. Raises ValueError, naming file and annotation, unless `faults` take it."""
    return [page for page, _ in pages_of(read_json(annotations), str(annotations), names, faults)]


def pages_of(
    truth: Any, where: str, names: Names = None, faults: Faults = None
) -> list[tuple[Page, Mapping[str, Any]]]:
    """The pages of COCO's dictionary, each with what it tells of its image. Raises as `coco_pages` does."""
    try:
        category = {c["id"]: c["name"] for c in truth["categories"]}
        images = {image["id"]: {"file_name": image["file_name"], **image} for image in truth["images"]}
        rows: dict[Any, list[tuple[str, Mapping[str, Any]]]] = {image: [] for image in images}
        for number, annotation in enumerate(truth["annotations"], 1):
            here = f"{where}: annotation {annotation.get('id', f'number {number}')}"
            with passing_over(faults):
                if annotation["image_id"] not in rows:
                    raise ValueError(f"{here}: there is no image {annotation['image_id']!r}")
                rows[annotation["image_id"]].append((here, annotation))
        return [
            (_page(image, where, read_marks(rows[i], partial(_mark, category, names), faults)), image)
            for i, image in images.items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not COCO annotations ({error!r})") from error


def _page(image: Mapping[str, Any], where: str, marks: tuple[Mark, ...]) -> Page:
    return Page(str(image["file_name"]), where, marks, slide_id=str(image.get("slide_id", "")))


def _mark(category: Mapping[Any, object], names: Names, row: tuple[str, Mapping[str, Any]]) -> Mark:
    where, annotation = row
    if annotation["category_id"] not in category:
        raise ValueError(f"{where}: there is no category {annotation['category_id']!r}")
    label = cell_type_of(category[annotation["category_id"]], names, where)
    if not isinstance(annotation["bbox"], list) or len(annotation["bbox"]) != 4:
        raise ValueError(f"{where}: box {annotation['bbox']} is not four numbers")
    x, y, w, h = finite(annotation["bbox"], where)
    return Mark(where, (x, y, x + w, y + h), label)


def write_coco(annotations: Path, pictures: Sequence[LabelledPicture], images: Path) -> None:
    """Pictures below the folder `images` as a COCO file; its categories are their labels, in alphabetical order."""
    sized = []
    for picture in pictures:
        sized.append((name_in(images, picture.path), *size_of(picture.path), picture))
    categories = sorted({label for picture in pictures for label in picture.labels})
    write_whole(UPath(annotations), json.dumps(coco_truth(sized, categories)).encode())


def coco_truth(pictures: list[tuple[str, int, int, LabelledPicture]], categories: list[str]) -> dict[str, Any]:
    """COCO's dictionary of pictures given as (file name, width, height, labels); ids count from 1.

    Raises ValueError, naming the picture, for a label that is no category.
    """
    ids = {name: i for i, name in enumerate(categories, 1)}
    truth: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    for number, (file_name, width, height, picture) in enumerate(pictures, 1):
        origin = {"slide_id": picture.slide_id} if picture.slide_id else {}
        truth["images"].append({"id": number, "file_name": file_name, "width": width, "height": height, **origin})
        for (x0, y0, x1, y1), label, measured in rows_of(picture):
            if label not in ids:
                raise ValueError(f"{picture.path}: {label!r} is none of {', '.join(categories)}")
            w, h = x1 - x0, y1 - y0
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": ids[label],
                    "bbox": [x0, y0, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    **measured,
                }
            )
    return truth
