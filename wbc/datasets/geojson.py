"""QuPath's GeoJSON (one file a picture, RFC 7946 in pixels) in and out."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from wbc.datasets.labels import LabelledPicture, cell_type_of, clean, find_pictures, finite, read_json
from wbc.storage.atomic import write_whole

SUFFIX = ".geojson"


def read_geojson(images: Path, annotations: Path, names: Mapping[str, str] | None = None) -> list[LabelledPicture]:
    """Pictures of a folder of GeoJSON files named as they are; polygons as their boxes.

    `names` maps QuPath's classes to cell types (as they stand where it is None). Raises ValueError, naming the file,
    for what is no polygon with a class, and where a picture is missing.
    """
    pictures = find_pictures(images)
    labelled = []
    for path in sorted(annotations.glob(f"*{SUFFIX}")):
        if path.stem not in pictures:
            raise ValueError(f"{path}: there is no picture of this name")
        boxes, labels = [], []
        for number, feature in enumerate(_features(path), 1):
            where = f"{path}: feature {number}"
            boxes.append(_box(feature, where))
            labels.append(cell_type_of(_class(feature), names, where))
        labelled.append(clean(pictures[path.stem], boxes, labels))
    return labelled


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


def _box(feature: Any, where: str) -> tuple[float, float, float, float]:
    match feature:
        case {"geometry": {"type": "Polygon", "coordinates": [[_, _, _, *_] as ring, *_]}}:
            if not all(isinstance(point, list) and len(point) >= 2 for point in ring):
                raise ValueError(f"{where}: {ring} are not points")
            xs, ys = finite([point[0] for point in ring], where), finite([point[1] for point in ring], where)
            return min(xs), min(ys), max(xs), max(ys)
    raise ValueError(f"{where}: no polygon")


def _class(feature: Any) -> object:
    match feature:
        case {"properties": {"classification": {"name": name}}}:
            return name
    return None


def write_geojson(picture: LabelledPicture, path: Path, measurements: Sequence[Mapping[str, float]] = ()) -> None:
    """A picture's boxes as detections that QuPath opens on it, named by their labels.

    `measurements` has a row of named numbers for each box, or none at all.
    """
    rows = measurements or [{}] * len(picture.labels)
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": label},
                "measurements": dict(row),
            },
        }
        for (x0, y0, x1, y1), label, row in zip(picture.boxes.tolist(), picture.labels, rows, strict=True)
    ]
    write_whole(UPath(path), json.dumps({"type": "FeatureCollection", "features": features}).encode())
