"""QuPath's GeoJSON (one file a picture, RFC 7946 in pixels) in and out."""

import json
from collections.abc import Sequence
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
    around,
    cell_type_of,
    finite,
    labelled,
    passing_over,
    read_json,
    read_marks,
)
from wbc.storage.atomic import write_whole

SUFFIX = ".geojson"


def read_geojson(images: Path, annotations: Path, names: Names = None) -> list[LabelledPicture]:
    """Pictures of a folder of GeoJSON files named as they are, folders in it included; polygons as their boxes.

    `names` maps QuPath's classes to cell types (as they stand where it is None). Raises ValueError, naming the file,
    for what is no polygon with a class, and where a picture is missing.
    """
    return labelled(images, geojson_pages(annotations, names))


def geojson_pages(annotations: Path, names: Names = None, faults: Faults = None) -> list[Page]:
    """The pages of a folder of GeoJSON files, or of one. Raises ValueError, naming file and feature, unless `faults`
    take it.
    """
    folder = annotations if annotations.is_dir() else annotations.parent
    pages = []
    for path in sorted(annotations.rglob(f"*{SUFFIX}")) if annotations.is_dir() else [annotations]:
        with passing_over(faults):
            marks = read_marks(enumerate(_features(path), 1), partial(_mark, path, names), faults)
            stem = path.relative_to(folder).as_posix().removesuffix(SUFFIX)
            pages.append(Page(stem, str(path), marks, by_stem=True))
    return pages


def _features(path: Path) -> list[Any]:
    """The features of a collection, of a list as older versions of QuPath wrote it, or the one that stands alone."""
    match read_json(path):
        case {"type": "FeatureCollection", "features": list() as features}:
            return features
        case list() as features:
            return features
        case {"type": "Feature"} as feature:
            return [feature]
    raise ValueError(f"{path}: no GeoJSON features")


def _mark(path: Path, names: Names, row: tuple[int, Any]) -> Mark:
    number, feature = row
    where = f"{path}: feature {number}"
    return Mark(where, _box(feature, where), cell_type_of(_class(feature), names, where))


def _box(feature: Any, where: str) -> Box:
    match feature:
        case {"geometry": {"type": "Polygon", "coordinates": [[_, _, _, *_] as ring, *_]}}:
            if not all(isinstance(point, list) and len(point) >= 2 for point in ring):
                raise ValueError(f"{where}: {ring} are not points")
            xs, ys = finite([point[0] for point in ring], where), finite([point[1] for point in ring], where)
            return around(zip(xs, ys, strict=True))
    raise ValueError(f"{where}: no polygon")


def _class(feature: Any) -> object:
    match feature:
        case {"properties": {"classification": {"name": name}}}:
            return name
    return None


def write_geojson_folder(folder: Path, pictures: Sequence[LabelledPicture], images: Path) -> None:
    """A GeoJSON file below `folder` for each picture below `images`, by its name."""
    for picture in pictures:
        write_geojson(picture, folder / Path(name_in(images, picture.path)).with_suffix(SUFFIX))


def write_geojson(picture: LabelledPicture, path: Path) -> None:
    """A picture's boxes as detections that QuPath opens on it, named by their labels, with their measurements."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": label},
                "measurements": dict(measured),
            },
        }
        for (x0, y0, x1, y1), label, measured in rows_of(picture)
    ]
    write_whole(UPath(path), json.dumps({"type": "FeatureCollection", "features": features}).encode())
