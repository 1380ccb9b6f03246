"""CVAT's annotations, "CVAT for images 1.1" (one XML file a task), in and out."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

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
    read_marks,
    turned,
)
from wbc.datasets.xml import LinedElement, read_xml
from wbc.storage.atomic import write_whole

SHAPES = ("box", "ellipse", "polygon", "mask")
EDGES = ("xtl", "ytl", "xbr", "ybr")


def cvat_pages(annotations: Path, names: Names = None, faults: Faults = None) -> list[Page]:
    """The pages of a CVAT file; boxes, ellipses, polygons and masks as boxes, also where they are turned.

    Raises ValueError, naming file and line, unless `faults` take it.
    """
    root = read_xml(annotations)
    if root.tag != "annotations" or root.find("track") is not None:
        raise ValueError(f"{annotations}: not CVAT for images 1.1: export it from CVAT as that")
    pages = []
    for image in root.iter("image"):
        where = _where(annotations, image)
        with passing_over(faults):
            if not (name := image.get("name")):
                raise ValueError(f"{where}: an image without a name")
            marks = read_marks(list(image), partial(_mark, annotations, names), faults)
            pages.append(Page(name, where, marks))
    return pages


def _where(path: Path, element: Element) -> str:
    return f"{path}:{element.line}" if isinstance(element, LinedElement) else str(path)


def _mark(path: Path, names: Names, shape: Element) -> Mark:
    where = _where(path, shape)
    return Mark(where, _box(shape, where), cell_type_of(shape.get("label"), names, where))


def _box(shape: Element, where: str) -> Box:
    angle = math.radians(*_numbers(shape, where, "rotation", default="0"))
    match shape.tag:
        case "box":
            x0, y0, x1, y1 = _numbers(shape, where, *EDGES)
            return turned((x0, y0, x1, y1), angle, ((x0 + x1) / 2, (y0 + y1) / 2))
        case "ellipse":
            cx, cy, rx, ry = _numbers(shape, where, "cx", "cy", "rx", "ry")
            return around_ellipse((cx, cy), (rx, ry), angle)
        case "mask":
            x, y, w, h = _numbers(shape, where, "left", "top", "width", "height")
            return x, y, x + w, y + h
        case "polygon":
            return around(_points(shape.get("points", ""), where))
    raise ValueError(f"{where}: {shape.tag!r} is not a {', '.join(SHAPES)}")


def _numbers(shape: Element, where: str, *names: str, default: str = "") -> list[float]:
    texts = [shape.get(name, default) for name in names]
    try:
        return finite([float(text) for text in texts], where)
    except ValueError as error:
        raise ValueError(f"{where}: {', '.join(names)} are {texts}, not finite numbers") from error


def _points(text: str, where: str) -> list[tuple[float, float]]:
    try:
        points = [(float(x), float(y)) for x, y in (point.split(",") for point in text.split(";"))]
        finite([side for point in points for side in point], where)
    except ValueError as error:
        raise ValueError(f"{where}: points {text!r} are not pairs of finite numbers") from error
    return points


def write_cvat(annotations: Path, pictures: Sequence[LabelledPicture], images: Path) -> None:
    """Pictures below the folder `images` as a file that CVAT uploads to a task that has them; measurements too."""
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    for number, picture in enumerate(pictures):
        width, height = size_of(picture.path)
        sides = {"width": str(width), "height": str(height)}
        image = SubElement(root, "image", {"id": str(number), "name": name_in(images, picture.path), **sides})
        for box, label, measured in rows_of(picture):
            edges = {edge: repr(value) for edge, value in zip(EDGES, box, strict=True)}
            shape = SubElement(image, "box", {"label": label, "source": "manual", "occluded": "0", **edges})
            for name, value in measured.items():
                SubElement(shape, "attribute", name=name).text = f"{value:g}"
    indent(root)
    write_whole(UPath(annotations), tostring(root, "utf-8", xml_declaration=True))
