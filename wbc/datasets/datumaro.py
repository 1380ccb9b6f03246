"""Datumaro's own annotations (one JSON file a subset) in."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wbc.datasets.reading import (
    Box,
    Faults,
    Mark,
    Names,
    Page,
    around,
    cell_type_of,
    finite,
    passing_over,
    read_json,
    read_marks,
)

NO_SHAPES = ("label", "caption")  # what is said of a picture as a whole


def datumaro_pages(annotations: Path, names: Names = None, faults: Faults = None) -> list[Page]:
    """The pages of a file of Datumaro's; boxes, polygons and ellipses as boxes.

    Raises ValueError, naming file, item and annotation, unless `faults` take it.
    """
    content = read_json(annotations)
    try:
        labels = [label["name"] for label in content["categories"]["label"]["labels"]]
        items = list(content["items"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{annotations}: not annotations of Datumaro ({error!r})") from error
    pages = []
    for number, item in enumerate(items, 1):
        with passing_over(faults):
            pages.append(_page(item, f"{annotations}: item {number}", partial(_mark, labels, names), faults))
    return pages


def _page(item: Any, where: str, read: Any, faults: Faults) -> Page:
    match item:
        case {"id": name, "annotations": list() as shapes}:
            rows = [
                (f"{where} ({name}), annotation {shape.get('id', i)}", shape)
                for i, shape in enumerate(shapes)
                if isinstance(shape, dict) and shape.get("type") not in NO_SHAPES
            ]
            path = _path(item)
            return Page(path or str(name), where, read_marks(rows, read, faults), by_stem=not path)
    raise ValueError(f"{where}: not an item of Datumaro's")


def _path(item: Mapping[str, Any]) -> str:
    """The picture's file; "" where only its stem is told."""
    for key in ("image", "media"):
        match item.get(key):
            case {"path": str(path)} if path:
                return path
    return ""


def _mark(labels: Sequence[str], names: Names, row: tuple[str, Mapping[str, Any]]) -> Mark:
    where, shape = row
    number = shape.get("label_id")
    if not isinstance(number, int) or not 0 <= number < len(labels):
        raise ValueError(f"{where}: label_id {number!r} is none of {len(labels)} labels")
    return Mark(where, _box(shape, where), cell_type_of(labels[number], names, where))


def _box(shape: Mapping[str, Any], where: str) -> Box:
    match shape:
        case {"type": "bbox", "bbox": [x, y, w, h]}:
            x, y, w, h = finite((x, y, w, h), where)
            return x, y, x + w, y + h
        case {"type": "ellipse", "points": [x0, y0, x1, y1]}:
            x0, y0, x1, y1 = finite((x0, y0, x1, y1), where)
            return x0, y0, x1, y1
        case {"type": "polygon", "points": [_, _, _, _, _, _, *_] as flat} if len(flat) % 2 == 0:
            sides = finite(flat, where)
            return around(zip(sides[::2], sides[1::2], strict=True))
    raise ValueError(f"{where}: {shape.get('type')!r} is not a bbox, polygon or ellipse with its numbers")
