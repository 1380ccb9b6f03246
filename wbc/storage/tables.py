"""The tables of a count: their Arrow schemas, and how one is built from cells, a differential, a slide's row."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wbc.engine import Engine
from wbc.sought import Sought
from wbc.storage.categorical import Categorical
from wbc.storage.layout import TableName
from wbc.storage.names import encodable
from wbc.types import CellNames, Differential, DifferentialRow, Precision, ScaleFrom


@dataclass(frozen=True, slots=True)
class FailedField:
    """A field that could not be counted, and why."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class DuplicateField:
    """A field that shows the same picture as an earlier one, and is not counted."""

    field: str
    same_as: str


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a count went, in seconds."""

    decode: float = 0.0
    store: float = 0.0
    detect: float = 0.0
    classify: float = 0.0
    write: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class FieldSeconds:
    """Where the time of a field went, in seconds; its share where several went through a model together."""

    decode: float = 0.0
    store: float = 0.0
    detect: float = 0.0
    classify: float = 0.0


_REVIEW_TIME = pa.timestamp("us", tz="UTC")
_BOX = [(side, pa.float32()) for side in ("x0", "y0", "x1", "y1")]
_CELLS = [
    *((name, pa.string()) for name in ("slide_id", "field")),
    ("cell_id", pa.int32()),
    *_BOX,
    ("cell_type", pa.dictionary(pa.int32(), pa.string())),
    *((name, pa.float32()) for name in ("score", "type_score")),
    ("second_type", pa.dictionary(pa.int32(), pa.string())),
    ("second_score", pa.float32()),
    ("predicted_type", pa.dictionary(pa.int32(), pa.string())),
    ("corrected_by", pa.string()),
    ("corrected_at", _REVIEW_TIME),
]
_DIFFERENTIALS = [
    *((name, pa.string()) for name in ("slide_id", "cell_type", "lineage")),
    ("count", pa.int64()),
    ("in_differential", pa.bool_()),
    *((name, pa.float64()) for name in ("percent", "ci_low", "ci_high", "percent_corrected", "low", "high")),
]
_DETECTIONS = [
    *((name, pa.string()) for name in ("slide_id", "field")),
    ("detection_id", pa.int32()),
    *_BOX,
    ("detector_class", pa.dictionary(pa.int32(), pa.string())),
    ("score", pa.float32()),
    ("kinds", pa.list_(pa.string())),
    ("probabilities", pa.list_(pa.float16())),
    ("detections_id", pa.dictionary(pa.int32(), pa.string())),
    ("distance", pa.float32()),
    ("print", pa.string()),
]
_FIELDS = [
    *((name, pa.string()) for name in ("slide_id", "field", "digest")),
    *((name, pa.int64()) for name in ("height_px", "width_px")),
    ("um_per_px", pa.float64()),
    ("scale_from", pa.string()),
    ("n_cells", pa.int64()),
    *((name, pa.string()) for name in ("status", "reason", "duplicate_of")),
    ("seconds", pa.struct([(stage.name, pa.float64()) for stage in fields(FieldSeconds)])),
    *((name, pa.float64()) for name in ("red_cell_um", "unfamiliarity")),
]
_SLIDES = [
    *((name, pa.string()) for name in ("slide_id", "count_id")),
    ("counted_at", pa.timestamp("us", tz="UTC")),
    *((name, pa.int64()) for name in ("n_fields", "n_fields_failed")),
    ("failed_fields", pa.list_(pa.struct([(part.name, pa.string()) for part in fields(FailedField)]))),
    *((name, pa.int64()) for name in ("n_cells", "n_differential", "n_unidentified")),
    ("um_per_px", pa.float64()),
    ("scale_from", pa.string()),
    *((name, pa.float64()) for name in ("me_ratio", "me_low", "me_high", "nrbc_per_100_wbc")),
    ("flags", pa.list_(pa.string())),
    *((name, pa.string()) for name in ("detector", "classifier", "taxonomy", "wbc_version")),
    ("seconds", pa.struct([(stage.name, pa.float64()) for stage in fields(Seconds)])),
    ("min_score", pa.float64()),
    ("taxonomy_digest", pa.string()),
    ("counting_version", pa.int64()),
    ("precision", pa.string()),
    *((name, pa.string()) for name in ("cells_digest", "differentials_digest")),
    ("reason", pa.string()),
    ("duplicate_fields", pa.list_(pa.struct([(part.name, pa.string()) for part in fields(DuplicateField)]))),
    ("source", pa.string()),
    *((name, pa.string()) for name in ("run_id", "fields_digest", "detections_digest")),
    ("unfamiliarity", pa.float64()),
    ("cells", pa.string()),
    ("n_corrected", pa.int64()),
    ("corrections_digest", pa.string()),
    ("engine", pa.string()),
    ("red_cell_um", pa.float64()),
    ("n_seen_again", pa.int64()),
]
SCHEMAS: dict[TableName, pa.Schema] = {
    "cells": pa.schema(_CELLS),
    "differentials": pa.schema(_DIFFERENTIALS),
    "fields": pa.schema(_FIELDS),
    "detections": pa.schema(_DETECTIONS),
    "slides": pa.schema(_SLIDES),
}


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A slide's row in `slides`, field by field the table's columns. `count_id` is letters and digits alone.

    `cells_digest` and its like are the SHA-256 of the slide's other files, which `commit` fills in; a row that was
    written before there were such columns has None. `reason` says why a slide failed as a whole; one whose worker
    died, say, has no `count_id`: the next run counts it. `source` is the address of the slide's folder.
    `unfamiliarity` is how far its cells look from those that the classifier has learnt from: known laboratories go up
    to 1. None where nothing tells. `cells` are those that were looked for. `n_corrected` of its cells a person named;
    `corrections_digest` is of what was said of the slide, None where nothing was. `engine` is
    what ran the detector, None in rows from before there was a choice. `red_cell_um` is how large a typical red cell is
    at the scale that its fields were counted at, in the middle; None where that was not seen. `n_seen_again` white
    cells more were found, which are others seen in a second field; None in rows from before that was asked.

    Raises ValueError for another `count_id` (it names a folder) and for a `counted_at` without a time zone.
    """

    slide_id: str
    count_id: str | None
    counted_at: datetime
    n_fields: int
    n_fields_failed: int
    failed_fields: tuple[FailedField, ...]
    n_cells: int
    n_differential: int
    n_unidentified: int
    um_per_px: float | None
    scale_from: ScaleFrom | None
    me_ratio: float | None
    me_low: float | None
    me_high: float | None
    nrbc_per_100_wbc: float | None
    flags: tuple[str, ...]
    detector: str
    classifier: str | None
    taxonomy: str
    wbc_version: str
    seconds: Seconds
    min_score: float | None = None
    taxonomy_digest: str | None = None
    counting_version: int | None = None
    precision: Precision | None = None
    cells_digest: str | None = None
    differentials_digest: str | None = None
    reason: str | None = None
    duplicate_fields: tuple[DuplicateField, ...] = ()
    source: str | None = None
    run_id: str | None = None
    fields_digest: str | None = None
    detections_digest: str | None = None
    unfamiliarity: float | None = None
    cells: Sought = "all"
    n_corrected: int = 0
    corrections_digest: str | None = None
    engine: Engine | None = None
    red_cell_um: float | None = None
    n_seen_again: int | None = None

    def __post_init__(self) -> None:
        if self.count_id is not None and not self.count_id.isalnum():
            raise ValueError(f"count_id {self.count_id!r} is not letters and digits")
        if self.counted_at.tzinfo is None:
            raise ValueError(f"counted_at {self.counted_at} has no time zone")


@dataclass(frozen=True, slots=True)
class Review:
    """What became of a model's name for a cell, None where no model found the cell: `by` whom, and when (UTC)."""

    predicted_type: str | None
    by: str
    at: datetime


def cells_table(
    slide_id: str,
    field_names: Categorical,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    names: CellNames,
    reviews: Sequence[Review | None] = (),
) -> pa.Table:
    """The `cells` of a slide, numbered from 0 in the order given.

    Per cell: file name of its field, box (N, 4) x0,y0,x1,y1 in field px, detector's score, what it is called, and what
    a person made of that, if any did (a NaN is a null in the table). Raises ValueError where the lengths differ.
    """
    n = len(field_names)
    if reviews and len(reviews) != n:
        raise ValueError(f"{n} fields, {len(reviews)} reviews")
    if boxes.shape != (n, 4) or not n == len(scores) == len(names.types) == len(names.scores):
        raise ValueError(
            f"{n} fields, boxes {boxes.shape}, {len(names.types)} types, {len(scores)} and {len(names.scores)} scores"
        )
    types = words(names.types)
    columns = [
        pa.repeat(slide_id, n),
        texts(field_names),
        np.arange(n, dtype=np.int32),
        *sides(boxes),
        types,
        pa.array(scores, pa.float32(), from_pandas=True),
        pa.array(names.scores, pa.float32(), from_pandas=True),
        words(names.second_types),
        pa.array(names.second_scores, pa.float32(), from_pandas=True),
        *(_reviewed(names, reviews) if reviews else (types, pa.nulls(n, pa.string()), pa.nulls(n, _REVIEW_TIME))),
    ]
    return pa.table(columns, schema=SCHEMAS["cells"])


def _reviewed(names: CellNames, reviews: Sequence[Review | None]) -> tuple[pa.Array, pa.Array, pa.Array]:
    """The columns predicted_type, corrected_by and corrected_at."""
    predicted = [name if r is None else r.predicted_type for name, r in zip(names.types, reviews, strict=True)]
    by = pa.array([None if r is None else encodable(r.by) for r in reviews], pa.string())
    return words(predicted), by, pa.array([None if r is None else r.at for r in reviews], _REVIEW_TIME)


def sides(boxes: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The columns x0, y0, x1, y1 of boxes (N, 4)."""
    return [np.ascontiguousarray(boxes[:, side]) for side in range(4)]


def texts(values: Categorical) -> pa.Array:
    """A column of texts that Arrow takes, many of them alike: a slide's cells lie in few fields."""
    return categories(values).cast(pa.string())


def categories(values: Categorical) -> pa.DictionaryArray:
    """A column of few different texts that Arrow takes."""
    safe = pa.array([arrow_text(text) for text in values.categories], pa.string())
    return pa.DictionaryArray.from_arrays(values.codes, safe)


def repeated(text: str | None, n: int) -> pa.DictionaryArray:
    """A column of one text, or of nulls."""
    if text is None:
        return pa.nulls(n, pa.dictionary(pa.int32(), pa.string()))
    return categories(Categorical.repeat(text, n))


def words(values: Iterable[str | None]) -> pa.Array:
    """A column of few different words."""
    return pa.array(list(values), pa.string()).dictionary_encode()


def differentials_table(slide_id: str, differential: Differential) -> pa.Table:
    """The `differentials` rows of a slide, in the order of `differential.rows`."""
    columns = [[getattr(row, column.name) for row in differential.rows] for column in fields(DifferentialRow)]
    return pa.table([[slide_id] * len(differential.rows), *columns], schema=SCHEMAS["differentials"])


def slides_table(row: SlideRow) -> pa.Table:
    """The one row of a slide in `slides`."""
    failed = [{"field": arrow_text(f.field), "reason": arrow_text(f.reason)} for f in row.failed_fields]
    reason = None if row.reason is None else arrow_text(row.reason)
    twins = [{"field": arrow_text(d.field), "same_as": arrow_text(d.same_as)} for d in row.duplicate_fields]
    nested = {"failed_fields": failed, "duplicate_fields": twins, "reason": reason}
    return pa.Table.from_pylist([asdict(row) | nested], SCHEMAS["slides"])


def arrow_text(text: str) -> str:
    """`text` as Arrow takes it: `encodable`."""
    return encodable(text)
