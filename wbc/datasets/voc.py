"""Pascal VOC annotations (one XML file a picture) in."""

from pathlib import Path
from xml.etree import ElementTree

from wbc.datasets.labels import LabelledPicture, clean


def read_voc(
    images: Path, annotations: Path, names: dict[str, str], stems: list[str] | None = None
) -> list[LabelledPicture]:
    """Pictures of a VOC folder; `names` maps its labels to cell types, `stems` keeps a split of the files.

    Raises ValueError, naming the file, where XML is broken, a label is not in `names` or a picture is missing.
    """
    chosen = sorted(stems) if stems is not None else sorted(p.stem for p in annotations.glob("*.xml"))
    return [_read_one(annotations / f"{stem}.xml", images, names) for stem in chosen]


def _read_one(path: Path, images: Path, names: dict[str, str]) -> LabelledPicture:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not XML ({error})") from error
    pictures = [p for p in images.glob(f"{path.stem}.*") if p.is_file()]
    if not pictures:
        raise ValueError(f"{path}: no picture {path.stem}.* in {images}")
    boxes, labels = [], []
    for item in root.iter("object"):
        label = item.findtext("name", "")
        if label not in names:
            raise ValueError(f"{path}: label {label!r} is none of {sorted(names)}")
        x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{edge}", "nan")) for edge in ("xmin", "ymin", "xmax", "ymax"))
        boxes.append((x0, y0, x1, y1))
        labels.append(names[label])
    return clean(pictures[0], boxes, labels)
