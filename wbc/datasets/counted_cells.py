"""Cells of a count, read back from OUT: what the tables say of them, and their pixels from the fields as counted."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from upath import UPath

from wbc.cells.classify import cut_crops
from wbc.models.cards import ModelCard
from wbc.models.registry import ModelError, read_card
from wbc.storage.counts import read_slide_row, read_table
from wbc.storage.images import decode_field, digest, field_content
from wbc.storage.layout import Layout
from wbc.storage.stamps import read_stamps
from wbc.storage.tables import SlideRow
from wbc.taxonomy import UNIDENTIFIED
from wbc.types import FieldError, Slide

SIDES = ["x0", "y0", "x1", "y1"]


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """Crops uint8 (M,S,S,3) of some cells, and `rows` (M,), which of the cells that were asked for these are.

    `passed_over` says of each field whose cells could not be had why, a line each.
    """

    crops: NDArray[np.uint8]
    rows: NDArray[np.int64]
    passed_over: tuple[str, ...]


def slide_rows(out: UPath) -> dict[str, SlideRow]:
    """The rows of the slides in OUT that were counted, by id. Raises ValueError where there is none."""
    every = {slide_id: read_slide_row(out, slide_id) for slide_id in Layout(out).slide_ids()}
    counted = {slide_id: row for slide_id, row in every.items() if row.reason is None}
    if not counted:
        raise ValueError(f"{str(out)!r}: no slide was counted here")
    return counted


def read_cells(out: UPath, slide_ids: Sequence[str]) -> pd.DataFrame:
    """The table `cells` of some slides: slide_id, field, cell_id, x0 y0 x1 y1, cell_type, type_score (NaN for null)."""
    columns = ["slide_id", "field", "cell_id", *SIDES, "cell_type", "type_score"]
    tables = [read_table(out, "cells", slide_id).select(columns) for slide_id in slide_ids]
    plain = [table.set_column(7, "cell_type", table["cell_type"].cast(pa.string())) for table in tables]
    cells: pd.DataFrame = pa.concat_tables(plain).to_pandas()
    return cells


def white_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """Those of `read_cells` that a classifier named, or would have."""
    return cells[cells["type_score"].notna() | (cells["cell_type"] == UNIDENTIFIED)].reset_index(drop=True)


def cut_cells(out: UPath, cells: pd.DataFrame, rows: Mapping[str, SlideRow], card: ModelCard) -> Cut:
    """The crops of cells as the classifier of `card` saw them in the count: the same pixels, at the same scale.

    Fields that are gone or have changed since they were counted, or whose scale nobody wrote down, are passed over.
    """
    fields = {slide_id: _fields(out, rows[slide_id]) for slide_id in cells["slide_id"].unique()}
    groups = list(cells.groupby(["slide_id", "field"], sort=True).indices.items())
    boxes = cells[SIDES].to_numpy(np.float32)

    def cut(group: tuple[Any, Any]) -> NDArray[np.uint8] | str:
        (slide_id, name), which = group
        try:
            pixels, um_per_px = fields[slide_id].read(str(name))
        except FieldError as error:
            return f"{slide_id}: {error}"
        return cut_crops(pixels, boxes[which], um_per_px, card)

    with ThreadPoolExecutor(2) as readers:
        parts = list(readers.map(cut, groups))
    had = [(which, part) for (_, which), part in zip(groups, parts, strict=True) if not isinstance(part, str)]
    empty = np.zeros((0, card.input_px, card.input_px, 3), np.uint8)
    indices = np.concatenate([np.zeros(0, np.int64), *(which for which, _ in had)])
    crops = np.concatenate([empty, *(part for _, part in had)])
    order = np.argsort(indices, kind="stable")
    return Cut(crops[order], indices[order], tuple(part for part in parts if isinstance(part, str)))


@dataclass(frozen=True, slots=True)
class _Fields:
    """Where a slide's fields lie, and by their names the digests and scales with which they were counted."""

    folder: UPath
    digests: Mapping[str, str | None]
    scales: Mapping[str, float | None]
    default: float | None
    why_no_scale: str

    def read(self, name: str) -> tuple[NDArray[np.uint8], float]:
        """A field's pixels and µm per px. Raises FieldError where they are not those that were counted."""
        counted = self.digests.get(name)
        if not counted:
            raise FieldError(name, "nothing tells whether it is still the picture that was counted; count it again")
        um_per_px = self.scales.get(name) or self.default
        if um_per_px is None:
            raise FieldError(name, self.why_no_scale)
        content = field_content(self.folder / name)
        if digest(content) != counted:
            raise FieldError(name, "has changed since it was counted")
        return decode_field(name, content), um_per_px


def _fields(out: UPath, row: SlideRow) -> _Fields:
    """Where a slide's fields are, and what is known of them: from the table `fields`, else from an older count."""
    folder = UPath(row.source or "no address")
    detectors = _detector_um_per_px(row)
    unknown = "its scale was not known, and the count's detector, whose scale was assumed, cannot be read"
    if row.fields_digest is not None:
        known = read_table(out, "fields", row.slide_id).select(["field", "digest", "um_per_px"]).to_pylist()
        digests = {field["field"]: field["digest"] for field in known}
        scales = {field["field"]: field["um_per_px"] for field in known}
        return _Fields(folder, digests, scales, detectors, unknown)
    digests = {name: record.sha256 for name, record in read_stamps(out, Slide(row.slide_id, ())).items()}
    if "mixed_scale" in row.flags:
        return _Fields(folder, digests, {}, None, "its scale is not written down, and differs from other fields'")
    return _Fields(folder, digests, {}, row.um_per_px or detectors, unknown)


def _detector_um_per_px(row: SlideRow) -> float | None:
    """The scale that is assumed for fields without one: the detector's own; None where it is not there any more."""
    try:
        return read_card(row.detector.rpartition("@")[0]).um_per_px
    except ModelError:
        return None
