"""Frozen labelled slides: what models are judged on, by scanner or laboratory, read from blocks of a TOML file.

A file has `[[data]]` or `[[measure]]` blocks as training configs have (their other tables are passed over), each named
by its `set`. COCO, VOC and other annotations that `wbc.datasets.formats` knows are one set without a file.
"""

import hashlib
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from upath import UPath

from wbc.configs import checked
from wbc.datasets.crops import Crops
from wbc.datasets.formats import CellTypeNames, Source, read_source
from wbc.datasets.labels import LabelledPicture
from wbc.storage.images import read_field
from wbc.taxonomy import GENERIC, Taxonomy, load_taxonomy
from wbc.training.classifier_data import CellBoxes, CellPictures, CropTable, CutCells, read_crops
from wbc.training.detector_data import BoxData, StoreData, of_one_scale, read_boxes

BLOCKS = ("measure", "data")  # the first that a file has is read


@dataclass(frozen=True, slots=True)
class FrozenFields(BoxData):
    """Labelled pictures, as `BoxData` names them; `names` are needed only for labels that no taxonomy has.

    Where there are `kinds`, single cells are cut as `CutCells` says.
    """

    names: dict[str, str] = field(default_factory=dict)
    kinds: str = ""


Block = FrozenFields | StoreData | CropTable | CellPictures | CellBoxes


@dataclass(frozen=True, slots=True)
class FrozenFile:
    """What a TOML file says of frozen slides; labels are cell types of `taxonomy`."""

    blocks: tuple[Annotated[Block, Field(discriminator="format")], ...]
    taxonomy: str = "blood"


@dataclass(frozen=True, slots=True, eq=False)
class FrozenSet:
    """Labelled cells of one scanner or laboratory: fields of one scale with boxes, or single cells, or both.

    `pictures` are by scale in µm per px. Labels are cell types, coarse ones and the generic `wbc` too.
    """

    name: str
    pictures: tuple[tuple[LabelledPicture, float], ...] = ()
    crops: Crops | None = None

    def read(self) -> Iterator[tuple[LabelledPicture, float, NDArray[np.uint8]]]:
        """Each picture with its µm per px and pixels uint8 (H,W,3). Raises FieldError for one that cannot be read."""
        for picture, um_per_px in self.pictures:
            yield picture, um_per_px, read_field(UPath(picture.path))


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """Frozen labelled sets, and the taxonomy of their labels."""

    sets: tuple[FrozenSet, ...]
    taxonomy: Taxonomy

    @property
    def with_fields(self) -> tuple[FrozenSet, ...]:
        """The sets that have fields."""
        return tuple(one for one in self.sets if one.pictures)

    def digest(self) -> str:
        """32 hexadecimal digits of every picture, box and label: equal digests, equal slides."""
        total = hashlib.sha256()
        for one in self.sets:
            total.update(f"set {one.name}\n".encode())
            for picture, um_per_px in one.pictures:
                content = hashlib.sha256(UPath(picture.path).read_bytes()).hexdigest()
                total.update(f"{content} {um_per_px!r} {picture.labels}\n".encode() + picture.boxes.tobytes())
            if one.crops is not None:
                total.update(f"{one.crops.labels}\n".encode() + one.crops.pixels.tobytes())
        return total.hexdigest()[:32]


def read_frozen(source: Path, data: Path, taxonomy: str = "blood", images: Path | None = None) -> Frozen:
    """The frozen sets of a TOML file, whose paths are below the folder `data`, or of annotations in any known form.

    Annotations are labelled by `taxonomy` (a file says its own); their pictures lie in `images`, else beside them.
    Raises ValueError, naming the file, for what cannot be read, or where there is no cell.
    """
    if source.suffix == ".toml":
        return _read_file(source, data)
    known = load_taxonomy(taxonomy)
    beside = images or (source if source.is_dir() else source.parent)
    pictures = read_source(Source(source, beside, CellTypeNames(known)))
    if not any(picture.labels for picture in pictures):
        raise ValueError(f"{source}: no labelled cell")
    return Frozen((FrozenSet(source.stem, _scaled(pictures, None, source)),), known)


def _read_file(path: Path, data: Path) -> Frozen:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    key = next((key for key in BLOCKS if values.get(key)), None)
    if key is None:
        raise ValueError(f"{path}: has neither [[measure]] nor [[data]]")
    file = checked({"blocks": values[key], "taxonomy": values.get("taxonomy", "blood")}, FrozenFile, str(path))
    taxonomy = load_taxonomy(file.taxonomy)
    names = [_name(block) for block in file.blocks]
    if doubles := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path}: two sets are called {', '.join(sorted(doubles))}: give each its `set`")
    sets = (_read_block(name, block, data, taxonomy, path) for name, block in zip(names, file.blocks, strict=True))
    return Frozen(tuple(sets), taxonomy)


def _name(block: Block) -> str:
    """What a block's set is called."""
    match block:
        case CropTable():
            return block.set or Path(block.table).stem
        case StoreData():
            return block.set or Path(block.store).name
    return block.set or Path(block.images).parent.name


def _read_block(
    name: str,
    block: Block,
    data: Path,
    taxonomy: Taxonomy,
    path: Path,
) -> FrozenSet:
    if isinstance(block, StoreData):
        return FrozenSet(name, _scaled(block.read(data), block.um_per_px, path))
    if not isinstance(block, FrozenFields):
        return FrozenSet(name, crops=read_crops(block, data))
    known = CellTypeNames(taxonomy, block.names)
    crops = read_crops(_cut_cells(block, known), data) if block.kinds else None
    spec = block if block.format == "yolo" else replace(block, names=known)  # type: ignore[arg-type]  # a mapping, too
    pictures = read_boxes(spec, data)
    if not pictures:
        raise ValueError(f"{path}: {name}: no picture matches {block.keep!r}")
    return FrozenSet(name, _scaled(pictures, block.um_per_px, path), crops)


def _cut_cells(block: FrozenFields, names: CellTypeNames) -> CutCells:
    plain = {entry.name: getattr(block, entry.name) for entry in fields(BoxData)}
    return CutCells(**plain | {"names": names}, kinds=block.kinds)


def _scaled(
    pictures: Sequence[LabelledPicture], um_per_px: float | None, where: Path
) -> tuple[tuple[LabelledPicture, float], ...]:
    try:
        by_scale = of_one_scale(pictures, um_per_px)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    scale = {id(picture): scale for scale, alike in by_scale.items() for picture in alike}
    return tuple((picture, scale[id(picture)]) for picture in pictures)


def detector_labels(labels: Sequence[str], classes: Sequence[str], taxonomy: Taxonomy) -> list[str | None]:
    """What a detector with `classes` is to call cells: their class, `wbc` for a nucleated cell; None for no class."""
    return [_detector_label(label, classes, taxonomy) for label in labels]


def _detector_label(label: str, classes: Sequence[str], taxonomy: Taxonomy) -> str | None:
    if label in classes:
        return label
    is_white = label == GENERIC or (taxonomy.knows(label) and taxonomy.cell_type(label).nucleated)
    return GENERIC if is_white and GENERIC in classes else None


def is_named_white(label: str, taxonomy: Taxonomy) -> bool:
    """Whether a label tells the kind of a nucleated cell."""
    return label != GENERIC and taxonomy.knows(label) and taxonomy.cell_type(label).nucleated


def top_kinds(labels: Iterable[str], taxonomy: Taxonomy) -> tuple[str, ...]:
    """The kinds that all of these labels can be told apart by: those below none of the others, in their order.

    Where some neutrophils are told as bands and others only as neutrophils, the kind is the neutrophil.
    """
    known = dict.fromkeys(taxonomy.resolve(label) for label in labels)
    tops = [k for k in known if not any(a in known for a in taxonomy.ancestors(k))]
    order = [t.name for t in taxonomy.cell_types]
    return tuple(sorted(tops, key=order.index))


def kind_of(label: str, kinds: Sequence[str], taxonomy: Taxonomy) -> str | None:
    """The one of some kinds that a name is or lies below; None where it is none of them."""
    own = (taxonomy.resolve(label), *taxonomy.ancestors(label))
    return next((k for k in kinds if k in own), None)


def by_slide(pictures: Iterable[LabelledPicture]) -> dict[str, list[int]]:
    """The indices of pictures by the slide that they are fields of: their own, else their folder."""
    slides: dict[str, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        slides[picture.slide_id or picture.path.parent.name].append(i)
    return dict(slides)
