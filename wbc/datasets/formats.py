"""Every annotation format by its name, told by the look of a file or folder, and read or written alike."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wbc.datasets.coco import read_coco
from wbc.datasets.geojson import read_geojson
from wbc.datasets.labels import LabelledPicture, read_json
from wbc.datasets.via import read_via
from wbc.datasets.voc import read_voc
from wbc.datasets.yolo import read_yolo
from wbc.taxonomy import Taxonomy

CLASSES = "classes.txt"


@dataclass(frozen=True)
class CellTypeNames(Mapping[str, str]):
    """The cell types that labels mean: those that are `given`, else what a taxonomy has of that name.

    Capitals, spaces, hyphens and a plural's s are forgiven: "Segmented neutrophils" is `segmented_neutrophil`.
    """

    taxonomy: Taxonomy
    given: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, label: str) -> str:
        if label in self.given:
            return self.given[label]
        word = "_".join(label.lower().replace("-", " ").split())
        for name in (word, word.removesuffix("s")):
            if self.taxonomy.knows(name):
                return name
        raise KeyError(label)

    def __iter__(self) -> Iterator[str]:
        return iter([*self.given, *(t.name for t in self.taxonomy.cell_types)])

    def __len__(self) -> int:
        return len(list(iter(self)))


@dataclass(frozen=True, slots=True)
class Source:
    """Annotations at a path, the folder of their pictures, what their labels mean, and VIA's attribute that names."""

    annotations: Path
    images: Path
    names: Mapping[str, str]
    attribute: str = ""


READERS: Mapping[str, Callable[[Source], list[LabelledPicture]]] = {
    "coco": lambda s: read_coco(s.images, s.annotations, s.names),
    "voc": lambda s: read_voc(s.images, s.annotations, s.names),
    "yolo": lambda s: read_yolo(s.images, s.annotations, [s.names[c] for c in _classes(s)]),
    "via": lambda s: read_via(s.images, s.annotations, s.names, s.attribute),
    "geojson": lambda s: read_geojson(s.images, s.annotations, s.names),
}


def read_source(source: Source, format: str = "") -> list[LabelledPicture]:
    """The pictures of a source in a format, by default the one that it looks like. Raises ValueError as readers do."""
    return READERS[format or format_of(source.annotations)](source)


def format_of(annotations: Path) -> str:
    """The name of the format that a file or folder is in, by its look. Raises ValueError where it is none."""
    if annotations.is_dir():
        endings = {path.suffix.lower() for path in annotations.iterdir()}
        for ending, name in ((".xml", "voc"), (".geojson", "geojson"), (".txt", "yolo")):
            if ending in endings:
                return name
        raise ValueError(f"{annotations}: holds no annotations: no .xml, .geojson or .txt")
    match annotations.suffix.lower():
        case ".csv":
            return "via"
        case ".json":
            return _json_format(annotations, read_json(annotations))
    raise ValueError(f"{annotations}: its format is not known by its name: say --format {', '.join(READERS)}")


def _json_format(path: Path, content: Any) -> str:
    match content:
        case {"images": _, "annotations": _}:
            return "coco"
        case {"_via_img_metadata": _}:
            return "via"
        case dict() if all(isinstance(entry, dict) and "filename" in entry for entry in content.values()):
            return "via"
    raise ValueError(f"{path}: neither COCO nor VIA 2 annotations")


def _classes(source: Source) -> list[str]:
    """The names of YOLO's class numbers, from `classes.txt` in or beside the folder, or beside the pictures."""
    for folder in (source.annotations, source.annotations.parent, source.images, source.images.parent):
        if (folder / CLASSES).is_file():
            return (folder / CLASSES).read_text().split()
    raise ValueError(f"{source.annotations}: no {CLASSES} in or beside it names its class numbers")
