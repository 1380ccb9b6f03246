"""Counts of one slide to write and read: `n` cells in the differential, seven beside it."""

import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
from counted import called, count_tables
from upath import UPath

from wbc.storage.categorical import Categorical
from wbc.storage.counts import commit
from wbc.storage.detections import FieldRow
from wbc.storage.layout import Layout, TableName
from wbc.storage.stamps import FieldRecord, write_stamps
from wbc.storage.tables import FailedField, FieldSeconds, Seconds, SlideRow, cells_table, differentials_table
from wbc.types import Differential, DifferentialRow, Slide


def differential(n: int) -> Differential:
    rows = (
        DifferentialRow("segmented_neutrophil", "myeloid", n, True, 100.0, 20.0, 100.0),
        DifferentialRow("rbc", "erythroid", 7, False, None, None, None),
    )
    return Differential("blood", rows, n + 7, n, 0, 1.5, 0.2, math.inf, None, ("below_200", "nrbc_present"))


def slide_row(count_id: str, n: int, slide_id: str = "s1") -> SlideRow:
    return SlideRow(
        slide_id=slide_id,
        count_id=count_id,
        counted_at=datetime(2026, 5, 4, 3, 2, 1, 987654, UTC),
        n_fields=3,
        n_fields_failed=1,
        failed_fields=(FailedField("bad name\n.jpg", "is empty"),),
        n_cells=n + 7,
        n_differential=n,
        n_unidentified=0,
        um_per_px=0.125,
        scale_from="red_cells",
        me_ratio=1.5,
        me_low=0.2,
        me_high=math.inf,
        nrbc_per_100_wbc=None,
        flags=("below_200", "nrbc_present"),
        detector="bundled:detector 1",
        classifier=None,
        taxonomy="blood",
        wbc_version="0.1.0",
        seconds=Seconds(1, 2, 3, 4, 5, 15),
    )


def cells(n: int, slide_id: str = "s1") -> pa.Table:
    names = ["a.jpg", "b c.jpg"]
    return cells_table(
        slide_id,
        Categorical.of(names[i % 2] for i in range(n)),
        np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        np.linspace(0, 1, n, dtype=np.float32),
        called(["rbc" if i % 3 else "eosinophil" for i in range(n)], [np.nan if i % 3 else 0.5 for i in range(n)]),
    )


def sample_tables(n_cells: int, n: int | None = None, slide_id: str = "s1") -> dict[TableName, pa.Table]:
    """The tables of a count beside its row, with `n` cells in the differential, else as many as cells."""
    rows = differentials_table(slide_id, differential(n_cells if n is None else n))
    fields = [FieldRow("a.jpg", "0" * 64, "counted", FieldSeconds(), 240, 320, n_cells=n_cells)]
    return count_tables(cells(n_cells, slide_id), rows, fields)


def count(out: UPath, count_id: str, n: int, slide_id: str = "s1") -> None:
    """What a run does for a slide."""
    Layout(out).sweep()
    write_stamps(out, Slide(slide_id, ()), {"a.jpg": FieldRecord(n, str(n), "0" * 64)})
    commit(out, sample_tables(n, slide_id=slide_id), slide_row(count_id, n, slide_id))


def read_differentials(out: UPath) -> pd.DataFrame:
    """All slides' differentials, as a user reads them."""
    return pd.read_parquet((out / "differentials").path, filesystem=out.fs)


def contents(out: UPath) -> dict[str, bytes]:
    """Every file below OUT, by its path there."""
    return {p.path.removeprefix(out.path): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def temporaries(out: UPath) -> list[str]:
    return [name for name in contents(out) if name.endswith(".tmp")]
