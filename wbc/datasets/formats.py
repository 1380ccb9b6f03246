"""Every annotation format by its name, told by the look of a file or folder, and read or written alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wbc.datasets.coco import coco_pages, write_coco
from wbc.datasets.cvat import cvat_pages, write_cvat
from wbc.datasets.datumaro import datumaro_pages
from wbc.datasets.geojson import geojson_pages, write_geojson_folder
from wbc.datasets.label_studio import label_studio_pages, write_label_studio
from wbc.datasets.labels import LabelledPicture
from wbc.datasets.reading import Faults, Names, Page, labelled, read_json
from wbc.datasets.via import via_pages, write_via
from wbc.datasets.voc import voc_pages
from wbc.datasets.xml import read_xml
from wbc.datasets.yolo import class_names, yolo_pages
from wbc.taxonomy import Taxonomy


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
    """Annotations at a path, the folder of their pictures, what their labels mean, and VIA's attribute that names.

    `format` is the one that they look like, where it is not told.
    """

    annotations: Path
    images: Path
    names: Names
    attribute: str = ""
    format: str = ""


Reader = Callable[[Source, Faults], list[Page]]
Writer = Callable[[Path, Sequence[LabelledPicture], Path], None]

READERS: Mapping[str, Reader] = {
    "coco": lambda s, faults: coco_pages(s.annotations, s.names, faults),
    "voc": lambda s, faults: voc_pages(s.annotations, s.names, faults=faults),
    "yolo": lambda s, faults: yolo_pages(s.annotations, _classes(s), s.names, faults=faults),
    "via": lambda s, faults: via_pages(s.annotations, s.names, s.attribute, faults),
    "geojson": lambda s, faults: geojson_pages(s.annotations, s.names, faults),
    "cvat": lambda s, faults: cvat_pages(s.annotations, s.names, faults),
    "label_studio": lambda s, faults: label_studio_pages(s.annotations, s.names, faults),
    "datumaro": lambda s, faults: datumaro_pages(s.annotations, s.names, faults),
}
WRITERS: Mapping[str, Writer] = {
    "coco": write_coco,
    "via": write_via,
    "geojson": write_geojson_folder,
    "cvat": write_cvat,
    "label_studio": write_label_studio,
}
OF_FOLDERS = ("geojson",)  # written as a folder of files


def read_source(source: Source, faults: Faults = None) -> list[LabelledPicture]:
    """The pictures of a source. Raises ValueError at the first thing that is wrong, unless `faults` take it."""
    return labelled(source.images, source_pages(source, faults), faults)


def source_pages(source: Source, faults: Faults = None) -> list[Page]:
    """The pages of a source; opens no picture. Raises ValueError as `read_source` does."""
    form = source.format or format_of(source.annotations)
    if form not in READERS:
        raise ValueError(f"format {form!r} is none of {', '.join(READERS)}")
    return READERS[form](source, faults)


def write_pictures(target: Path, pictures: Sequence[LabelledPicture], images: Path, form: str) -> None:
    """Write pictures below the folder `images` in a format. Raises ValueError for one that is not written."""
    if form not in WRITERS:
        raise ValueError(f"format {form!r} is none that is written: {', '.join(WRITERS)}")
    WRITERS[form](target, pictures, images)


def format_of(annotations: Path) -> str:
    """The name of the format that a file or folder is in, by its look. Raises ValueError where it is none."""
    if annotations.is_dir():
        endings = {path.suffix.lower() for path in annotations.rglob("*")}
        for ending, name in ((".xml", "voc"), (".geojson", "geojson"), (".txt", "yolo")):
            if ending in endings:
                return name
        raise ValueError(f"{annotations}: holds no annotations: no .xml, .geojson or .txt")
    match annotations.suffix.lower():
        case ".csv":
            return "via"
        case ".geojson":
            return "geojson"
        case ".xml":
            return _xml_format(annotations)
        case ".json":
            return _json_format(annotations, read_json(annotations))
    raise ValueError(f"{annotations}: its format is not known by its name: say --format {', '.join(READERS)}")


def _xml_format(path: Path) -> str:
    if read_xml(path).tag == "annotations":
        return "cvat"
    raise ValueError(f"{path}: not CVAT for images; of Pascal VOC name the folder")


def _json_format(path: Path, content: Any) -> str:
    match content:
        case {"images": _, "annotations": _}:
            return "coco"
        case {"categories": _, "items": _}:
            return "datumaro"
        case [{"data": _}, *_]:
            return "label_studio"
        case {"_via_img_metadata": _}:
            return "via"
        case dict() if content and all(isinstance(e, dict) and "filename" in e for e in content.values()):
            return "via"
    raise ValueError(f"{path}: neither COCO nor annotations of VIA 2, Label Studio or Datumaro")


def _classes(source: Source) -> list[str]:
    folder, images = source.annotations, source.images
    return class_names(folder, folder.parent, images, images.parent)
