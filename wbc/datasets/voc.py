"""Pascal VOC annotations (one XML file a picture) in."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from wbc.datasets.labels import LabelledPicture
from wbc.datasets.reading import (
    Faults,
    Mark,
    Names,
    Page,
    cell_type_of,
    finite,
    labelled,
    passing_over,
    read_marks,
)
from wbc.datasets.xml import LinedElement, read_xml

EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    images: Path, annotations: Path, names: Names, stems: Sequence[str] | None = None
) -> list[LabelledPicture]:
    """Pictures of a VOC folder; `names` maps its labels to cell types, `stems` keeps a split of the files.

    Raises ValueError, naming the file, where XML is broken or missing, a label is not in `names`, a box is not four
    numbers or a picture is missing.
    """
    return labelled(images, voc_pages(annotations, names, stems))


def voc_pages(
    annotations: Path, names: Names = None, stems: Sequence[str] | None = None, faults: Faults = None
) -> list[Page]:
    """The pages of a VOC folder's files. Raises ValueError, naming file and line, unless `faults` take it."""
    pages = []
    for stem in sorted(stems) if stems is not None else sorted(p.stem for p in annotations.glob("*.xml")):
        path = annotations / f"{stem}.xml"
        with passing_over(faults):
            rows = list(read_xml(path).iter("object"))
            pages.append(Page(stem, str(path), read_marks(rows, partial(_mark, path, names), faults), by_stem=True))
    return pages


def _mark(path: Path, names: Names, item: Element) -> Mark:
    where = f"{path}:{item.line if isinstance(item, LinedElement) else 0}"
    label = cell_type_of(item.findtext("name", ""), names, where)
    edges = [item.findtext(f"bndbox/{edge}", "") for edge in EDGES]
    try:
        x0, y0, x1, y1 = finite([float(edge) for edge in edges], where)
    except ValueError as error:
        raise ValueError(f"{where}: box {edges} of {label!r} is not four finite numbers") from error
    return Mark(where, (x0, y0, x1, y1), label)
