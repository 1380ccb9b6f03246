"""What people said of a slide's cells, `OUT/corrections/<slide_id>.parquet`: it outlasts every count.

A correction belongs to a place of a picture, and no count's cell: it applies to whatever a model finds there, as long
as the field is the picture that was corrected.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from wbc.storage import atomic
from wbc.storage.layout import Layout
from wbc.storage.names import encodable

_SIDES = ("x0", "y0", "x1", "y1")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("slide_id", "field", "digest")),
        *((side, pa.float32()) for side in _SIDES),
        ("cell_type", pa.string()),
        ("corrected_by", pa.string()),
        ("corrected_at", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True, slots=True)
class Correction:
    """A person's name for the cell in a box x0,y0,x1,y1 (px) of a field: `by` whom, and when (UTC).

    `digest` is the SHA-256 of the field's file as it was then. `cell_type` is a name of the count's taxonomy, also
    `unidentified`, or `not_a_white_cell` for what is none.
    """

    field: str
    digest: str
    box: tuple[float, float, float, float]
    cell_type: str
    by: str
    at: datetime


def read_corrections(out: UPath, slide_id: str) -> tuple[Correction, ...]:
    """What people said of a slide's cells, in the order in which it was kept; none where nobody said anything.

    Raises ValueError where the file is broken: a count without it would be another.
    """
    path = Layout(out).corrections(slide_id)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ()
    try:
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        if not table.schema.equals(SCHEMA):
            raise ValueError(f"columns {table.column_names}")
        # To make a time with its zone pyarrow imports pandas.
        times = table["corrected_at"].cast(pa.timestamp("us")).to_pylist()
        rows = table.drop_columns(["slide_id", "corrected_at"]).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} holds no corrections ({error}): put it back, or remove it") from error
    return tuple(_correction(row, at) for row, at in zip(rows, times, strict=True))


def write_corrections(out: UPath, slide_id: str, corrections: Iterable[Correction]) -> None:
    """Put these in the place of all that was said of a slide's cells. For the run that holds OUT. Raises OSError."""
    rows = [
        {
            "slide_id": slide_id,
            "field": c.field,
            "digest": c.digest,
            **dict(zip(_SIDES, c.box, strict=True)),
            "cell_type": c.cell_type,
            "corrected_by": encodable(c.by),
            "corrected_at": c.at,
        }
        for c in corrections
    ]
    path, sink = Layout(out).corrections(slide_id), pa.BufferOutputStream()
    if not rows:
        path.unlink(missing_ok=True)
        return
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink)
    with atomic.staged({path: sink.getvalue().to_pybytes()}, durable=True):
        pass


def applicable(corrections: Iterable[Correction], digests: Mapping[str, str | None]) -> tuple[Correction, ...]:
    """Those whose field is still the picture that was corrected; `digests` are of the fields' files, by file name."""
    known = {encodable(name): digest for name, digest in digests.items()}
    return tuple(c for c in corrections if known.get(c.field) == c.digest)


def corrections_digest(corrections: Iterable[Correction]) -> str | None:
    """The SHA-256 of corrections in whatever order, None of none: what a `count_id` knows of them."""
    lines = sorted(json.dumps([c.field, c.digest, c.box, c.cell_type, c.by, c.at.isoformat()]) for c in corrections)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def _correction(row: dict[str, Any], at: datetime) -> Correction:
    x0, y0, x1, y1 = (row[side] for side in _SIDES)
    by = row["corrected_by"]
    return Correction(row["field"], row["digest"], (x0, y0, x1, y1), row["cell_type"], by, at.replace(tzinfo=UTC))
