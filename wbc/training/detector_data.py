"""What detectors learn from: labelled pictures and rendered ones, laid together to endless mosaics."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset
from upath import UPath

from wbc.datasets.annotation_store import AnnotationStore
from wbc.datasets.augment import Jitter
from wbc.datasets.coco import read_coco
from wbc.datasets.formats import Source as AnnotationSource
from wbc.datasets.formats import read_source
from wbc.datasets.fractions import read_fractions
from wbc.datasets.geojson import read_geojson
from wbc.datasets.labels import LabelledPicture, red_cell_um_per_px
from wbc.datasets.mosaic import LabelledPixels, MosaicSettings, Source, draw_mosaic, load_source
from wbc.datasets.steady import arrays_digest, steady
from wbc.datasets.via import read_via
from wbc.datasets.voc import read_voc
from wbc.datasets.yolo import read_yolo
from wbc.synth.smear import NORMAL_BLOOD, SmearSettings, draw_stain, render_field
from wbc.taxonomy import GENERIC, load_taxonomy


@dataclass(frozen=True, slots=True)
class BoxData:
    """Labelled pictures of a config: their `format`, and paths below the data folder.

    `split` lists files of stems to keep; `split_csv` keeps stems (column `image`) of a CSV whose `split` column is
    `train`. `weight` is how often it is drawn, beside the others. `names` maps its labels to cell types (for yolo: in
    the order of its class numbers). `um_per_px` is measured from red cells where it is not given; `keep` is a pattern
    that a picture's path must match, `leave_out` are stems of those that are not taken. `set` is what figures measured
    on it are called. `attribute` is what names a region of VIA's, where its regions have several. `part` keeps the
    pictures whose lot, drawn by their content, is from its first to below its second number: [0.0, 0.9] and [0.9, 1.0]
    split nine to one.
    """

    format: Literal["voc", "yolo", "coco", "fractions", "via", "geojson", "cvat", "label_studio", "datumaro"]
    images: str
    annotations: str
    names: dict[str, str]
    weight: float = 1.0
    split: tuple[str, ...] = ()
    split_csv: str = ""
    leave_out: tuple[str, ...] = ()
    um_per_px: float | None = None
    keep: str = "*"
    set: str = ""
    attribute: str = ""
    part: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class StoreData:
    """What was added to an annotation store: its folder below the data folder, or anywhere by an absolute address.

    `snapshot` is the digest of what it held when it was taken; all that it holds now, where there is none. `names` maps
    cell types to classes of a detector; of others, what `taxonomy` has for nucleated is a `wbc`, and the rest stays.
    `um_per_px` is of pictures that were added without one; else their red cells tell it.
    """

    store: str
    format: Literal["store"]
    snapshot: str = ""
    taxonomy: str = "blood"
    names: dict[str, str] = field(default_factory=dict)
    weight: float = 1.0
    um_per_px: float | None = None
    set: str = ""

    def annotation_store(self, root: Path) -> AnnotationStore:
        """The store."""
        return AnnotationStore(UPath(self.store) if "://" in self.store else UPath(root / self.store))

    def read(self, root: Path) -> list[LabelledPicture]:
        """The pictures, labelled by cell types. Raises ValueError where the store holds none, or as the store does."""
        store = self.annotation_store(root)
        pictures = store.read(store.snapshot_of(self.snapshot) if self.snapshot else None)
        if not pictures:
            raise ValueError(f"{store.path}: nothing was added to this annotation store")
        return pictures


DetectorData = Annotated[BoxData | StoreData, Field(discriminator="format")]


def read_boxes(spec: BoxData | StoreData, root: Path) -> list[LabelledPicture]:
    """Pictures of one data set below `root`, labelled by a detector's classes. Raises ValueError as its reader does."""
    if isinstance(spec, StoreData):
        return [replace(p, labels=_classes(p, spec)) for p in spec.read(root)]
    matching = [picture for picture in _read_format(spec, root) if picture.path.match(spec.keep)]
    kept = [picture for picture in matching if picture.path.stem not in spec.leave_out]
    return [picture for picture in kept if spec.part == (0.0, 1.0) or spec.part[0] <= _lot(picture) < spec.part[1]]


def _lot(picture: LabelledPicture) -> float:
    """A picture's place from 0 to 1, by its content: the same picture twice is on one side of every split."""
    return int(hashlib.sha256(picture.path.read_bytes()).hexdigest()[:12], 16) / 16**12


def _classes(picture: LabelledPicture, spec: StoreData) -> tuple[str, ...]:
    taxonomy = load_taxonomy(spec.taxonomy)
    try:
        return tuple(
            spec.names.get(label) or (GENERIC if taxonomy.cell_type(label).nucleated else label)
            for label in picture.labels
        )
    except ValueError as error:
        raise ValueError(f"{picture.path}: {error}") from error


def _read_format(spec: BoxData, root: Path) -> list[LabelledPicture]:
    images, annotations = root / spec.images, root / spec.annotations
    stems: list[str] | None = None
    if spec.split:
        stems = [stem for name in spec.split for stem in (root / name).read_text().split()]
    if spec.split_csv:
        table = pd.read_csv(root / spec.split_csv)
        stems = list(table["image"][table["split"] == "train"])
    match spec.format:
        case "voc":
            return read_voc(images, annotations, spec.names, stems)
        case "yolo":
            return read_yolo(images, annotations, list(spec.names.values()), stems)
        case "coco":
            return read_coco(images, annotations, spec.names)
        case "via":
            return read_via(images, annotations, spec.names, spec.attribute)
        case "geojson":
            return read_geojson(images, annotations, spec.names)
        case "fractions":
            return read_fractions(images, annotations, spec.names)
    return read_source(AnnotationSource(annotations, images, spec.names, format=spec.format))


def load_sources(specs: Sequence[BoxData | StoreData], root: Path, classes: Sequence[str]) -> list[Source]:
    """Every data set of a config, in memory. Raises ValueError where one changes while it is read."""
    sources = []
    for spec in specs:
        with steady(*places_of(spec, root)):
            pictures = read_boxes(spec, root)
            for scale, alike in of_one_scale(pictures, spec.um_per_px).items():
                weight = spec.weight * len(alike) / len(pictures)
                sources.append(load_source(alike, scale, list(classes), weight))
    return sources


def places_of(spec: BoxData | StoreData, root: Path) -> tuple[Path, ...]:
    """The files and folders of a data set that may change while it is read; nothing in a store ever does."""
    return () if isinstance(spec, StoreData) else (root / spec.annotations, root / spec.images)


def of_one_scale(pictures: Sequence[LabelledPicture], um_per_px: float | None) -> dict[float, list[LabelledPicture]]:
    """The pictures by their µm per px: their own, else the one that is given, else by their red cells.

    Raises ValueError where nothing tells it.
    """
    groups: dict[float | None, list[LabelledPicture]] = {}
    for picture in pictures:
        groups.setdefault(picture.um_per_px or um_per_px, []).append(picture)
    unknown = groups.pop(None, [])
    scaled = {scale: group for scale, group in groups.items() if scale is not None}
    if unknown:
        scaled.setdefault(red_cell_um_per_px(unknown), []).extend(unknown)
    return scaled


@dataclass(frozen=True, slots=True)
class RenderedData:
    """Rendered smears among a detector's data: how many small pictures, of every kind alike, from which seed."""

    pictures: int
    seed: int
    weight: float
    height_px: int = 400
    width_px: int = 540
    um_per_px: float = 0.12


def render_source(spec: RenderedData, classes: Sequence[str]) -> Source:
    """Rendered smears in memory; a kind that is not among `classes` is a `wbc`."""
    settings = SmearSettings(
        height_px=spec.height_px,
        width_px=spec.width_px,
        um_per_px=spec.um_per_px,
        white_cells_per_field=(1, 3),
        platelets_per_field=(1, 5),
        proportions=tuple((kind, 1.0) for kind, _ in NORMAL_BLOOD),
    )
    rendered = []
    for i in range(spec.pictures):
        rng = np.random.default_rng([spec.seed, i])
        rendered.append(render_field(settings, rng, draw_stain(rng)))
    number = {name: i for i, name in enumerate(classes, 1)}
    labels = [np.array([number.get(k, number[GENERIC]) for k in kinds], np.int64) for _, _, kinds in rendered]
    names = tuple(f"rendered picture {i}" for i in range(spec.pictures))
    pixels, boxes = [p for p, _, _ in rendered], [b for _, b, _ in rendered]
    return Source(pixels, boxes, labels, spec.um_per_px, spec.weight, names=names)


class Mosaics(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Endless mosaics: the i-th depends on seed and i alone.

    Pixels float32 (3,S,S) in 0..1, and a target of boxes (N,4) and labels (N,).
    """

    def __init__(self, sources: list[Source], mosaic: MosaicSettings, jitter: Jitter, seed: int) -> None:
        self.sources, self.mosaic, self.jitter, self.seed = sources, mosaic, jitter, seed

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The mosaic `index` and its target as torchvision's detectors take it."""
        drawn = self._drawn(index)
        target = {"boxes": torch.from_numpy(drawn.boxes), "labels": torch.from_numpy(drawn.labels)}
        return torch.from_numpy(drawn.pixels.transpose(2, 0, 1).copy()).float() / 255, target

    def pictures(self, index: int) -> list[str]:
        """The pictures that the mosaic `index` is made of."""
        return list(self._drawn(index).pictures)

    def _drawn(self, index: int) -> LabelledPixels:
        return draw_mosaic(self.sources, self.mosaic, self.jitter, np.random.default_rng([self.seed, index]))

    @property
    def labels_shown(self) -> set[int]:
        """The labels that any picture has."""
        return {int(label) for source in self.sources for labels in source.labels for label in labels}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pictures with their boxes and labels, as they are in memory."""
        parts = ((p, b, n) for s in self.sources for p, b, n in zip(s.pixels, s.boxes, s.labels, strict=True))
        return arrays_digest(array for part in parts for array in part)
