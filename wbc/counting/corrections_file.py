"""A file of corrections, a table of names or an export that a reviewer has mended, held against a slide's count."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from upath import UPath

from wbc.cells.geometry import box_iou
from wbc.counting.corrected_cells import SAME_CELL_IOU
from wbc.datasets.cell_names import CellName, match, read_cell_names, refuse
from wbc.datasets.counted_cells import SIDES, read_cells
from wbc.datasets.formats import CellTypeNames, Source, source_pages
from wbc.datasets.reading import Mark, Page
from wbc.storage.counts import read_slide_row, read_table
from wbc.taxonomy import Taxonomy


@dataclass(frozen=True, slots=True)
class CorrectionsFile:
    """Where corrections are, and who made them. `format` and VIA's `attribute` as `datasets.formats.Source` has them.

    A Parquet, or a CSV with the columns slide_id, field, cell_id and cell_type, names cells of the count as it stands;
    any other file or folder is annotations of fields.
    """

    path: Path
    by: str
    format: str = ""
    attribute: str = ""


@dataclass(frozen=True, slots=True)
class Said:
    """A person's name for the cell in a box of a field, where it is another than the count has."""

    field: str
    box: tuple[float, float, float, float]
    cell_type: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file says of slides, by slide, and how many cells of the fields that it tells of it does not mention."""

    said: Mapping[str, tuple[Said, ...]]
    n_unmentioned: int = 0


def read_corrections_file(file: CorrectionsFile, out: UPath, slide_ids: Sequence[str], taxonomy: Taxonomy) -> Reading:
    """What a file says of the counts of some slides that they do not say themselves.

    Raises ValueError, naming file and line or id, for a slide, field, cell or name that there is not, for a cell that
    gets two names, and for whatever else is wrong: corrections are taken whole or not at all.
    """
    if _is_table(file):
        return Reading(_named_cells(read_cell_names(file.path), out, slide_ids, taxonomy))
    names = CellTypeNames(taxonomy)
    pages = source_pages(Source(file.path, file.path.parent, names, file.attribute, file.format))
    return _marked_fields(pages, _counted_fields(out, slide_ids), taxonomy)


def _is_table(file: CorrectionsFile) -> bool:
    if file.format or file.path.is_dir():
        return False
    if file.path.suffix == ".csv":
        with file.path.open(encoding="utf-8-sig", errors="replace") as lines:
            header = lines.readline()
        return "cell_id" in header or "slide_id" in header
    return file.path.suffix == ".parquet"


def _named_cells(
    names: Sequence[CellName], out: UPath, slide_ids: Sequence[str], taxonomy: Taxonomy
) -> dict[str, tuple[Said, ...]]:
    """What a table says, by slide."""
    refuse([f"{n.where}: slide {n.slide_id!r} is none that is recounted" for n in names if n.slide_id not in slide_ids])
    unknown = [name for name in names if not taxonomy.knows(name.cell_type)]
    refuse([f"{n.where}: {n.cell_type!r} is no cell type of the taxonomy {taxonomy.name}" for n in unknown])
    said: dict[str, list[Said]] = defaultdict(list)
    if names:
        cells = match(names, read_cells(out, sorted({name.slide_id for name in names})))
        for row in cells.to_dict("records"):
            if taxonomy.resolve(row["name"]) != row["cell_type"]:
                said[row["slide_id"]].append(Said(str(row["field"]), box_of([row[s] for s in SIDES]), row["name"]))
    return {slide_id: tuple(each) for slide_id, each in said.items()}


@dataclass(frozen=True, slots=True, eq=False)
class _CountedField:
    """A field as it was counted: its slide, that one's folder, its size in px, its cells."""

    slide_id: str
    folder: str
    field: str
    width: int
    height: int
    cells: pd.DataFrame


def _counted_fields(out: UPath, slide_ids: Sequence[str]) -> list[_CountedField]:
    fields = []
    for slide_id in slide_ids:
        row, cells = read_slide_row(out, slide_id), read_cells(out, [slide_id])
        folder = PurePosixPath((row.source or slide_id).replace("\\", "/")).name
        by_field = dict(iter(cells.groupby("field")))
        for line in (
            read_table(out, "fields", slide_id).select(["field", "status", "width_px", "height_px"]).to_pylist()
        ):
            if line["status"] == "counted":
                own = by_field.get(line["field"], cells[:0])
                fields.append(_CountedField(slide_id, folder, line["field"], line["width_px"], line["height_px"], own))
    return fields


def _marked_fields(pages: Iterable[Page], fields: Sequence[_CountedField], taxonomy: Taxonomy) -> Reading:
    """What annotations of fields say: other names for cells of the count, and cells that it lacks."""
    said: dict[str, list[Said]] = defaultdict(list)
    seen: dict[tuple[str, str], str] = {}
    n_unmentioned = 0
    for page in pages:
        field = _field_of(page, fields)
        if (key := (field.slide_id, field.field)) in seen:
            raise ValueError(f"{page.where}: field {field.field} of {field.slide_id} is there twice: {seen[key]}")
        seen[key] = page.where
        other, n = _compared(_marks(page, field), field, taxonomy)
        said[field.slide_id] += other
        n_unmentioned += n
    return Reading({slide_id: tuple(each) for slide_id, each in said.items() if each}, n_unmentioned)


def _field_of(page: Page, fields: Sequence[_CountedField]) -> _CountedField:
    """The field that a page is of. Raises ValueError where there is none, or more than one could be meant."""
    path = PurePosixPath(page.name.replace("\\", "/"))
    named = [f for f in fields if path.name == (PurePosixPath(f.field).stem if page.by_stem else f.field)]
    if page.slide_id:
        named = [f for f in named if f.slide_id == page.slide_id]
    if len(named) > 1 and path.parent.name:
        named = [f for f in named if f.folder == path.parent.name]
    if len(named) != 1:
        why = "is no field" if not named else "may be a field of more than one"
        raise ValueError(f"{page.where}: picture {page.name} {why} of the slides that are recounted: name its slide")
    return named[0]


def _marks(page: Page, field: _CountedField) -> Iterator[Mark]:
    """The marks of a page in px of the field. Raises ValueError for one that does not lie in it."""
    factors = (field.width, field.height) * 2 if page.in_fractions else (1, 1, 1, 1)
    for mark in page.marks:
        x0, y0, x1, y1 = (value * factor for value, factor in zip(mark.box, factors, strict=True))
        box = max(x0, 0.0), max(y0, 0.0), min(x1, float(field.width)), min(y1, float(field.height))
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(f"{mark.where}: box of {mark.label} has no area in {field.field}")
        yield Mark(mark.where, box, mark.label)


def _compared(marks: Iterable[Mark], field: _CountedField, taxonomy: Taxonomy) -> tuple[list[Said], int]:
    """What marks say other than the count's cells of a field, each cell taken for the mark that fits it best; and how
    many cells have no mark. Raises ValueError for a cell that is marked under two names."""
    drawn = list(marks)
    boxes = np.array([mark.box for mark in drawn], np.float32).reshape(-1, 4)
    own = field.cells[SIDES].to_numpy(np.float32)
    iou = box_iou(boxes, own)
    of_mark, of_cell = _pairs(iou)
    said = []
    for i, mark in enumerate(drawn):
        if i in of_mark:
            row = of_mark[i]
            if taxonomy.resolve(mark.label) != field.cells["cell_type"].iloc[row]:
                said.append(Said(field.field, box_of(own[row]), mark.label))
            continue
        near = int(iou[i].argmax()) if len(own) else 0
        if len(own) and iou[i, near] >= SAME_CELL_IOU:
            if (other := drawn[of_cell[near]]).label != mark.label:
                raise ValueError(f"{mark.where}: the cell is {mark.label} here and {other.label} at {other.where}")
            continue
        said.append(Said(field.field, box_of(boxes[i]), mark.label))
    return said, len(own) - len(of_cell)


def _pairs(iou: NDArray[np.float32]) -> tuple[dict[int, int], dict[int, int]]:
    """Which row goes with which column of a matrix, and the other way round: the best pairs first."""
    of_row: dict[int, int] = {}
    of_column: dict[int, int] = {}
    rows, columns = np.nonzero(iou >= SAME_CELL_IOU)
    for k in np.argsort(-iou[rows, columns], kind="stable"):
        row, column = int(rows[k]), int(columns[k])
        if row not in of_row and column not in of_column:
            of_row[row], of_column[column] = column, row
    return of_row, of_column


def box_of(sides: Iterable[float]) -> tuple[float, float, float, float]:
    """A box as the tables hold it, in float32's numbers."""
    x0, y0, x1, y1 = (float(np.float32(side)) for side in sides)
    return x0, y0, x1, y1
