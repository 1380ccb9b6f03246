"""Annotations of the VGG Image Annotator, version 2 (Dutta 2019), in as JSON or CSV, out as a project of JSON."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from upath import UPath

from wbc.datasets.labels import LabelledPicture, name_in, rows_of
from wbc.datasets.reading import (
    Box,
    Faults,
    Mark,
    Names,
    Page,
    around_ellipse,
    cell_type_of,
    finite,
    labelled,
    passing_over,
    read_json,
    read_marks,
)
from wbc.storage.atomic import write_whole

Region = tuple[str, Any, Any]  # where it stands, its shape's attributes, its own

COLUMNS = ("filename", "region_count", "region_shape_attributes", "region_attributes")
ATTRIBUTE = "cell_type"


def read_via(images: Path, annotations: Path, names: Names = None, attribute: str = "") -> list[LabelledPicture]:
    """Pictures of a VIA project, of its annotations exported as JSON, or (`.csv`) as CSV; shapes as their boxes.

    Rectangles, circles, ellipses and polygons have a box. `attribute` is the region attribute that names a cell, which
    needs telling where regions have several, and none is `cell_type`; `names` maps its values to cell types (as they
    stand where it is None).
    Raises ValueError, naming file, picture and region, for what is none of this, and for a picture that is missing.
    """
    return labelled(images, via_pages(annotations, names, attribute))


def via_pages(annotations: Path, names: Names = None, attribute: str = "", faults: Faults = None) -> list[Page]:
    """The pages of a VIA file. Raises ValueError, naming file and region or line, unless `faults` take it."""
    is_csv = annotations.suffix.lower() == ".csv"
    regions = _in_csv(annotations, faults) if is_csv else _in_json(annotations)
    read = partial(_mark, names, attribute)
    return [Page(name, str(annotations), read_marks(rows, read, faults)) for name, rows in regions.items()]


def _mark(names: Names, attribute: str, region: Region) -> Mark:
    where, shape, own = region
    box = shape_box(shape, where)
    return Mark(where, box, cell_type_of(_value(own, attribute, where), names, where))


def shape_box(shape: Any, where: str) -> Box:
    """The smallest box (x0, y0, x1, y1) around a VIA shape, in its pixels; `where` begins what is said of others."""
    match shape:
        case {"name": "rect", "x": x, "y": y, "width": width, "height": height}:
            x, y, width, height = finite((x, y, width, height), where)
            return x, y, x + width, y + height
        case {"name": "circle", "cx": cx, "cy": cy, "r": r}:
            cx, cy, r = finite((cx, cy, r), where)
            return cx - r, cy - r, cx + r, cy + r
        case {"name": "ellipse", "cx": cx, "cy": cy, "rx": rx, "ry": ry}:
            cx, cy, rx, ry, theta = finite((cx, cy, rx, ry, shape.get("theta", 0)), where)
            return around_ellipse((cx, cy), (rx, ry), theta)
        case {"name": "polygon", "all_points_x": [_, _, _, *_] as xs, "all_points_y": [_, _, _, *_] as ys}:
            xs, ys = finite(xs, where), finite(ys, where)
            return min(xs), min(ys), max(xs), max(ys)
    raise ValueError(f"{where}: {shape} is not a rect, circle, ellipse or polygon")


def _value(own: Any, attribute: str, where: str) -> object:
    """What the naming attribute of a region says; of check boxes the one that is ticked."""
    if not isinstance(own, Mapping) or not own:
        raise ValueError(f"{where}: {own!r} names no cell")
    if not attribute and len(own) > 1 and ATTRIBUTE not in own:
        raise ValueError(f"{where}: attributes {', '.join(own)}: which one names the cell?")
    name = attribute or (ATTRIBUTE if ATTRIBUTE in own else next(iter(own)))
    if name not in own:
        raise ValueError(f"{where}: no attribute {name!r} among {', '.join(own)}")
    value = own[name]
    if isinstance(value, Mapping):
        ticked = [option for option, is_ticked in value.items() if is_ticked]
        if len(ticked) != 1:
            raise ValueError(f"{where}: {name} has {len(ticked)} values: {', '.join(ticked)}")
        return ticked[0]
    return value


def _in_json(annotations: Path) -> dict[str, list[Region]]:
    content = read_json(annotations)
    regions: dict[str, list[Region]] = {}
    try:
        for entry in content.get("_via_img_metadata", content).values():
            name = entry["filename"]
            if not isinstance(name, str) or not isinstance(entry["regions"], list):
                raise TypeError("regions of version 1")
            of_picture = regions.setdefault(name, [])
            for region in entry["regions"]:
                where = f"{annotations}: {name}, region {len(of_picture) + 1}"
                of_picture.append((where, region["shape_attributes"], region["region_attributes"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{annotations}: not VIA 2 annotations ({error!r})") from error
    return regions


def _in_csv(annotations: Path, faults: Faults) -> dict[str, list[Region]]:
    regions: dict[str, list[Region]] = {}
    for number, row in _rows(annotations):
        where = f"{annotations}:{number}"
        of_picture = regions.setdefault(row["filename"], [])
        if row["region_count"] == "0":
            continue
        with passing_over(faults):
            try:
                shape, own = (json.loads(row[column]) for column in COLUMNS[2:])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: not VIA 2 annotations ({error})") from error
            of_picture.append((where, shape, own))
    return regions


def _rows(annotations: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with annotations.open(newline="") as file:
            rows = csv.DictReader(file)
            if missing := [c for c in COLUMNS if c not in (rows.fieldnames or [])]:
                raise ValueError(f"no column {', '.join(missing)}")
            for row in rows:
                if any(row[column] is None for column in COLUMNS):
                    raise ValueError(f"line {rows.line_num} is cut short")
                yield rows.line_num, row
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{annotations}: not VIA 2 annotations ({error})") from error


def write_via(annotations: Path, pictures: Sequence[LabelledPicture], images: Path) -> None:
    """Pictures below the folder `images` as a project that VIA 2 opens: boxes as rectangles, named by `cell_type`.

    Measurements are further attributes of regions, as text.
    """
    labels = sorted({label for picture in pictures for label in picture.labels})
    measured = sorted({name for picture in pictures for row in picture.measurements for name in row})
    entries = dict(_entry(picture, images) for picture in pictures)
    options = {"type": "dropdown", "description": "", "options": dict.fromkeys(labels, ""), "default_options": {}}
    texts = {name: {"type": "text", "description": "", "default_value": ""} for name in measured}
    project = {
        "_via_settings": {"core": {"default_filepath": ""}, "project": {"name": annotations.stem}},
        "_via_img_metadata": entries,
        "_via_attributes": {"region": {ATTRIBUTE: options, **texts}, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(entries),
    }
    write_whole(UPath(annotations), json.dumps(project).encode())


def _entry(picture: LabelledPicture, images: Path) -> tuple[str, dict[str, Any]]:
    name, size = name_in(images, picture.path), picture.path.stat().st_size
    regions = [
        {
            "shape_attributes": {"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0},
            "region_attributes": {ATTRIBUTE: label, **{key: f"{value:g}" for key, value in measured.items()}},
        }
        for (x0, y0, x1, y1), label, measured in rows_of(picture)
    ]
    return f"{name}{size}", {"filename": name, "size": size, "regions": regions, "file_attributes": {}}
