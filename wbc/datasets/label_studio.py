"""Label Studio's tasks (one JSON file a project) in; out as annotations, or as predictions with scores."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

from upath import UPath

from wbc.datasets.labels import LabelledPicture, name_in, rows_of, size_of
from wbc.datasets.reading import (
    Box,
    Faults,
    Mark,
    Names,
    Page,
    around,
    around_ellipse,
    cell_type_of,
    finite,
    passing_over,
    read_json,
    read_marks,
    turned,
)
from wbc.storage.atomic import write_whole

UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the names of files that are uploaded
KINDS = {"rectanglelabels": "a rectangle", "ellipselabels": "an ellipse", "polygonlabels": "a polygon"}
Region = tuple[str, Any]


def label_studio_pages(annotations: Path, names: Names = None, faults: Faults = None) -> list[Page]:
    """The pages of an export "JSON"; rectangles, ellipses and polygons as boxes. A task counts by its last annotation.

    A task that nobody annotated has no page: what a model predicted is no annotation. Raises ValueError, naming file,
    task and region, unless `faults` take it.
    """
    tasks = read_json(annotations)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise ValueError(f"{annotations}: no tasks of Label Studio, exported as JSON")
    pages = []
    for number, task in enumerate(tasks, 1):
        where = f"{annotations}: task {task.get('id', f'number {number}')}"
        with passing_over(faults):
            results = _results(task, where, faults)
            if results is not None:
                rows = [(f"{where}, region {region.get('id', i)}", region) for i, region in enumerate(results, 1)]
                pages.append(Page(_name(task, where), where, read_marks(rows, partial(_mark, names), faults)))
    return pages


def _results(task: Mapping[str, Any], where: str, faults: Faults) -> list[Any] | None:
    """The shapes of a task's last annotation that was not cancelled; None where there is none."""
    try:
        done = [a["result"] for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        if len(done) > 1 and faults is not None:
            faults.append(f"{where}: {len(done)} annotations: the last one counts")
        return [shape for shape in done[-1] if shape.get("type") != "choices"] if done else None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not annotations of Label Studio ({error!r})") from error


def _name(task: Mapping[str, Any], where: str) -> str:
    """The picture's file, from its address: below a folder of local files, or the name before it was uploaded."""
    match task["data"]:
        case {"image": str(address)} if address:
            parts = urlparse(address)
            if local := parse_qs(parts.query).get("d"):
                return local[0]
            path = unquote(parts.path)
            return UPLOADED.sub("", path.rpartition("/")[2]) if path.startswith("/data/upload/") else path.lstrip("/")
    raise ValueError(f"{where}: data has no image")


def _mark(names: Names, row: Region) -> Mark:
    where, region = row
    match region:
        case {"type": str(kind), "value": dict() as value, "original_width": width, "original_height": height}:
            w, h = finite((width, height), where)
            if kind not in KINDS:
                raise ValueError(f"{where}: {kind!r} is not {', '.join(KINDS.values())}")
            told = value.get(kind)
            if not isinstance(told, list) or len(told) != 1:
                raise ValueError(f"{where}: has {told!r} and not one label")
            return Mark(where, _box(kind, value, (w, h), where), cell_type_of(told[0], names, where))
    raise ValueError(f"{where}: not a region of Label Studio")


def _box(kind: str, value: Mapping[str, Any], size: tuple[float, float], where: str) -> Box:
    """The box in px of a shape in percent of a picture of (width, height)."""
    w, h = size[0] / 100, size[1] / 100
    try:
        (angle,) = finite([value.get("rotation") or 0], where)
        if kind == "polygonlabels":
            return around((x * w, y * h) for x, y in (finite(point, where) for point in value["points"]))
        x, y = finite((value["x"], value["y"]), where)
        if kind == "ellipselabels":
            rx, ry = finite((value["radiusX"], value["radiusY"]), where)
            return around_ellipse((x * w, y * h), (rx * w, ry * h), math.radians(angle))
        wide, high = finite((value["width"], value["height"]), where)
        box = (x * w, y * h, (x + wide) * w, (y + high) * h)
        return turned(box, math.radians(angle), box[:2])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: {value} is not {KINDS[kind]}") from error


def write_label_studio(annotations: Path, pictures: Sequence[LabelledPicture], images: Path) -> None:
    """Pictures below the folder `images` as tasks that Label Studio imports; `images` is its folder of local files.

    Boxes with the measurement `score` are predictions, to be looked through; others are annotations.
    """
    tasks = [_task(picture, images) for picture in pictures]
    write_whole(UPath(annotations), json.dumps(tasks).encode())


def _task(picture: LabelledPicture, images: Path) -> dict[str, Any]:
    name, (w, h) = name_in(images, picture.path), size_of(picture.path)
    results = [
        {
            "id": str(number),
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": w,
            "original_height": h,
            "image_rotation": 0,
            "value": {
                "x": 100 * x0 / w,
                "y": 100 * y0 / h,
                "width": 100 * (x1 - x0) / w,
                "height": 100 * (y1 - y0) / h,
                "rotation": 0,
                "rectanglelabels": [label],
            },
            **({"score": measured["score"], "meta": {"text": _lines(measured)}} if "score" in measured else {}),
        }
        for number, ((x0, y0, x1, y1), label, measured) in enumerate(rows_of(picture))
    ]
    task: dict[str, Any] = {"data": {"image": f"/data/local-files/?d={name}"}}
    if picture.measurements:
        scores = [row["score"] for row in picture.measurements]
        return task | {"predictions": [{"model_version": "wbc", "score": min(scores), "result": results}]}
    return task | {"annotations": [{"result": results, "was_cancelled": False}]}


def _lines(measured: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:g}" for name, value in measured.items()]
