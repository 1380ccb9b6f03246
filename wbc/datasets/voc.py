"""Pascal VOC annotations (one XML file a picture) in."""

import math
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from wbc.datasets.labels import LabelledPicture, clean, find_pictures


def read_voc(
    images: Path, annotations: Path, names: Mapping[str, str], stems: list[str] | None = None
) -> list[LabelledPicture]:
    """Pictures of a VOC folder; `names` maps its labels to cell types, `stems` keeps a split of the files.

    Raises ValueError, naming the file, where XML is broken or missing, a label is not in `names`, a box is not four
    numbers or a picture is missing.
    """
    pictures = find_pictures(images)
    file_names = sorted(stems) if stems is not None else sorted(p.stem for p in annotations.glob("*.xml"))
    return [_read_one(annotations / f"{stem}.xml", pictures, names) for stem in file_names]


def _read_one(path: Path, pictures: dict[str, Path], names: Mapping[str, str]) -> LabelledPicture:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise ValueError(f"{path}: not XML ({error})") from error
    if path.stem not in pictures:
        raise ValueError(f"{path}: there is no picture of this name")
    boxes, labels = [], []
    for item in root.iter("object"):
        label = item.findtext("name", "")
        if label not in names:
            raise ValueError(f"{path}: label {label!r} is none of {sorted(names)}")
        edges = [item.findtext(f"bndbox/{edge}", "") for edge in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = map(float, edges)
        except ValueError as error:
            raise ValueError(f"{path}: box {edges} of {label!r} is not four numbers") from error
        if not all(map(math.isfinite, (x0, y0, x1, y1))):
            raise ValueError(f"{path}: box {edges} of {label!r} is not finite")
        boxes.append((x0, y0, x1, y1))
        labels.append(names[label])
    return clean(pictures[path.stem], boxes, labels)
