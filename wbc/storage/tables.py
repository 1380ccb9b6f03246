"""The three tables of a count: their Arrow schemas, how one is built, and how a slide's are committed and read.

`OUT/{cells,differentials,slides}/<slide_id>.parquet`, one file a slide, replaced whole. `commit` goes these steps, each
of which either happened or did not, however the run ends:

1. All three new tables are written beside their places under names `.….tmp`, which readers of a folder pass over.
   Only here and in step 2 can the disk be full; the old count then still stands whole.
2. Where another count stands, its three files are *copied* to `OUT/history/<count_id>/`, so that readers never miss
   the slide; a copy that exists is written again.
3. The old `slides` row is removed: from here the slide has no committed count.
4. The new `cells`, `differentials` and `slides` take their places, in this order, by renaming. The `slides` row is the
   commit: it says that the other two are the same count's.

A run killed before step 3 leaves the old count, killed later a slide without a row, whose old count is in the history
already; either way the next run counts the slide again and ends with the same files, having swept the temporary ones
at its start. One run at a time may write to an OUT.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from upath import UPath

from wbc.storage import atomic
from wbc.storage.layout import TABLES, Layout, TableName
from wbc.types import Differential, DifferentialRow, Precision, ScaleFrom


@dataclass(frozen=True, slots=True)
class FailedField:
    """A field that could not be counted, and why."""

    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a count went, in seconds."""

    decode: float = 0.0
    store: float = 0.0
    detect: float = 0.0
    classify: float = 0.0
    write: float = 0.0
    total: float = 0.0


_CELLS = [
    *((name, pa.string()) for name in ("slide_id", "field")),
    ("cell_id", pa.int32()),
    *((side, pa.float32()) for side in ("x0", "y0", "x1", "y1")),
    ("cell_type", pa.dictionary(pa.int32(), pa.string())),
    *((name, pa.float32()) for name in ("score", "type_score")),
]
_DIFFERENTIALS = [
    *((name, pa.string()) for name in ("slide_id", "cell_type", "lineage")),
    ("count", pa.int64()),
    ("in_differential", pa.bool_()),
    *((name, pa.float64()) for name in ("percent", "ci_low", "ci_high")),
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
]
SCHEMAS: dict[TableName, pa.Schema] = {
    "cells": pa.schema(_CELLS),
    "differentials": pa.schema(_DIFFERENTIALS),
    "slides": pa.schema(_SLIDES),
}


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A slide's row in `slides`, field by field the table's columns. `count_id` is letters and digits alone.

    Raises ValueError for another `count_id` (it names a folder) and for a `counted_at` without a time zone.
    """

    slide_id: str
    count_id: str
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

    def __post_init__(self) -> None:
        if not self.count_id.isalnum():
            raise ValueError(f"count_id {self.count_id!r} is not letters and digits")
        if self.counted_at.tzinfo is None:
            raise ValueError(f"counted_at {self.counted_at} has no time zone")


def cells_table(
    slide_id: str,
    field_names: Sequence[str],
    boxes: NDArray[np.float32],
    cell_types: Sequence[str],
    scores: NDArray[np.float32],
    type_scores: NDArray[np.float32],
) -> pa.Table:
    """The `cells` of a slide, numbered from 0 in the order given.

    Per cell: file name of its field, box (N, 4) x0,y0,x1,y1 in field px, cell type, detector's score and classifier's
    score (NaN where it did not run: null in the table). Raises ValueError where the lengths differ.
    """
    n = len(field_names)
    if boxes.shape != (n, 4) or not n == len(cell_types) == len(scores) == len(type_scores):
        raise ValueError(
            f"{n} fields, boxes {boxes.shape}, {len(cell_types)} types, {len(scores)} and {len(type_scores)} scores"
        )
    columns = [
        pa.array([slide_id] * n, pa.string()),
        pa.array([arrow_text(name) for name in field_names], pa.string()),
        np.arange(n, dtype=np.int32),
        *(np.ascontiguousarray(boxes[:, side]) for side in range(4)),
        pa.array(list(cell_types), pa.string()).dictionary_encode(),
        scores,
        pa.array(type_scores, pa.float32(), from_pandas=True),
    ]
    return pa.table(columns, schema=SCHEMAS["cells"])


def differentials_table(slide_id: str, differential: Differential) -> pa.Table:
    """The `differentials` rows of a slide, in the order of `differential.rows`."""
    columns = [[getattr(row, column.name) for row in differential.rows] for column in fields(DifferentialRow)]
    return pa.table([[slide_id] * len(differential.rows), *columns], schema=SCHEMAS["differentials"])


def slides_table(row: SlideRow) -> pa.Table:
    """The one row of a slide in `slides`."""
    failed = [{"field": arrow_text(f.field), "reason": arrow_text(f.reason)} for f in row.failed_fields]
    return pa.Table.from_pylist([asdict(row) | {"failed_fields": failed}], SCHEMAS["slides"])


def arrow_text(text: str) -> str:
    """`text` with lone surrogates, which a local file name may hold and Arrow may not, written as `\\udcff`."""
    return text.encode(errors="backslashreplace").decode()


def commit(out: UPath, cells: pa.Table, differentials: pa.Table, row: SlideRow) -> None:
    """Make `row`, with its cells and differentials, the count of its slide, in the steps told at this module's top.

    A count with another `count_id` that stood there goes to the history; one with the same is replaced. Raises
    ValueError where a table has another schema, OSError where it cannot be written: the old count then stands whole.
    """
    layout = Layout(out)
    tables: dict[TableName, pa.Table] = {"cells": cells, "differentials": differentials, "slides": slides_table(row)}
    contents = {layout.table(name, row.slide_id): _parquet(name, table) for name, table in tables.items()}
    superseded = _count_id(layout.table("slides", row.slide_id))
    with atomic.staged(contents, durable=True):
        if superseded is not None and superseded != row.count_id:
            _keep(layout, row.slide_id, superseded)
        layout.table("slides", row.slide_id).unlink(missing_ok=True)


def _keep(layout: Layout, slide_id: str, count_id: str) -> None:
    places = {layout.history(count_id).table(name, slide_id): layout.table(name, slide_id) for name in TABLES}
    with atomic.staged({kept: old.read_bytes() for kept, old in places.items() if old.exists()}, durable=True):
        pass


def _parquet(name: TableName, table: pa.Table) -> bytes:
    if not table.schema.equals(SCHEMAS[name]):
        raise ValueError(f"a table of {name} has columns\n{table.schema}\nand not\n{SCHEMAS[name]}")
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def committed_count_id(out: UPath, slide_id: str) -> str | None:
    """The `count_id` of the count that stands for a slide; None where none does, or one of its files is gone or broken.

    Reads nothing but the `slides` row's one column.
    """
    layout = Layout(out)
    others = (layout.table("cells", slide_id), layout.table("differentials", slide_id))
    count_id = _count_id(layout.table("slides", slide_id))
    return count_id if count_id is not None and all(path.exists() for path in others) else None


def _count_id(slides_path: UPath) -> str | None:
    try:
        column = _parsed(slides_path.read_bytes(), ["count_id"])["count_id"]
        count_id = str(column[0].as_py())
    except (OSError, KeyError, IndexError, ValueError, pa.ArrowException):
        return None
    return count_id if count_id.isalnum() else None


def read_table(out: UPath, table: TableName, slide_id: str) -> pa.Table:
    """One table of a slide. Raises FileNotFoundError where there is none, ValueError where it is broken."""
    path = Layout(out).table(table, slide_id)
    content = path.read_bytes()
    try:
        return _parsed(content)
    except pa.ArrowException as error:
        raise ValueError(f"{str(path)!r} holds no table of {table}: {error}") from error


def _parsed(content: bytes, columns: list[str] | None = None) -> pa.Table:
    # A pool of threads takes longer to wake than one thread to read some kilobytes.
    return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)


def read_slide_row(out: UPath, slide_id: str) -> SlideRow:
    """A slide's row in `slides`. Raises FileNotFoundError where there is none, ValueError where it is broken."""
    table = read_table(out, "slides", slide_id)
    try:
        (row,) = table.drop_columns("counted_at").to_pylist()
        # To make a time with its zone pyarrow imports pandas, which takes longer than all else that is done here.
        (counted_at,) = table["counted_at"].cast(pa.timestamp("us")).to_pylist()
        failed = tuple(FailedField(**field) for field in row["failed_fields"])
        parts = {"failed_fields": failed, "flags": tuple(row["flags"]), "seconds": Seconds(**row["seconds"])}
        return SlideRow(**row | parts, counted_at=counted_at.replace(tzinfo=UTC))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{str(Layout(out).table('slides', slide_id))!r} holds no row of slides: {error}") from error
