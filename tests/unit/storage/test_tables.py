"""Tables of a count: exact columns, one count a slide, and nothing half-done whatever ends the run."""

import math
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from wbc.storage.layout import TABLES, Layout
from wbc.storage.names import safe_name
from wbc.storage.stamps import FieldRecord, write_stamps
from wbc.storage.tables import (
    FailedField,
    Seconds,
    SlideRow,
    cells_table,
    commit,
    committed_count_id,
    differentials_table,
    read_slide_row,
)
from wbc.types import Differential, DifferentialRow, Slide


@pytest.fixture
def local_out(tmp_path: Path) -> UPath:
    return UPath(tmp_path / "out")


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: a kill ends the process, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


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
        [names[i % 2] for i in range(n)],
        np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        ["rbc" if i % 3 else "eosinophil" for i in range(n)],
        np.linspace(0, 1, n, dtype=np.float32),
        np.where(np.arange(n) % 3, np.nan, 0.5).astype(np.float32),
    )


def count(out: UPath, count_id: str, n: int, slide_id: str = "s1") -> None:
    """What a run does for a slide."""
    Layout(out).sweep()
    write_stamps(out, Slide(slide_id, ()), {"a.jpg": FieldRecord(n, str(n), "0" * 64)})
    commit(out, cells(n, slide_id), differentials_table(slide_id, differential(n)), slide_row(count_id, n, slide_id))


def read_differentials(out: UPath) -> pd.DataFrame:
    """All slides' differentials, as a user reads them."""
    return pd.read_parquet((out / "differentials").path, filesystem=out.fs)


def contents(out: UPath) -> dict[str, bytes]:
    """Every file below OUT, by its path there."""
    return {p.path.removeprefix(out.path): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def temporaries(out: UPath) -> list[str]:
    return [name for name in contents(out) if name.endswith(".tmp")]


# Columns


def test_columns_and_types_are_the_contract(local_out: UPath) -> None:
    count(local_out, "c1", 5)
    schemas = {kind: pq.read_schema(Layout(local_out).table(kind, "s1")) for kind in TABLES}
    columns = {kind: [f"{column.name}: {column.type}" for column in schema] for kind, schema in schemas.items()}
    stages = ", ".join(f"{stage}: double" for stage in ("decode", "store", "detect", "classify", "write", "total"))
    assert columns["cells"] == [
        *("slide_id: string", "field: string", "cell_id: int32"),
        *("x0: float", "y0: float", "x1: float", "y1: float"),
        "cell_type: dictionary<values=string, indices=int32, ordered=0>",
        *("score: float", "type_score: float"),
    ]
    assert columns["differentials"] == [
        *("slide_id: string", "cell_type: string", "lineage: string", "count: int64", "in_differential: bool"),
        *("percent: double", "ci_low: double", "ci_high: double"),
    ]
    assert columns["slides"] == [
        *("slide_id: string", "count_id: string", "counted_at: timestamp[us, tz=UTC]"),
        *("n_fields: int64", "n_fields_failed: int64"),
        "failed_fields: list<element: struct<field: string, reason: string>>",
        *("n_cells: int64", "n_differential: int64", "n_unidentified: int64"),
        *("um_per_px: double", "scale_from: string"),
        *("me_ratio: double", "me_low: double", "me_high: double", "nrbc_per_100_wbc: double"),
        "flags: list<element: string>",
        *("detector: string", "classifier: string", "taxonomy: string", "wbc_version: string"),
        f"seconds: struct<{stages}>",
        *("min_score: double", "taxonomy_digest: string", "counting_version: int64", "precision: string"),
    ]
    assert pq.ParquetFile(Layout(local_out).table("cells", "s1")).metadata.row_group(0).column(0).compression == "ZSTD"


def test_pandas_reads_cells_of_all_slides(local_out: UPath) -> None:
    count(local_out, "c1", 4, "s1")
    count(local_out, "c1", 2, safe_name("_s2"))
    frame = pd.read_parquet(Path(local_out.path) / "cells")
    assert frame["slide_id"].tolist() == ["%5Fs2"] * 2 + ["s1"] * 4
    last = frame.iloc[-1]
    assert last[["field", "cell_id", "x0", "y0", "x1", "y1", "cell_type"]].tolist() == [
        "b c.jpg",
        3,
        12,
        13,
        14,
        15,
        "eosinophil",
    ]
    assert (last["score"], last["type_score"]) == (1.0, 0.5)
    assert frame["type_score"].isna().tolist() == [False, True, False, True, True, False]
    assert frame["cell_type"].value_counts().to_dict() == {"eosinophil": 3, "rbc": 3}


def test_percent_without_a_denominator_is_null(out: UPath) -> None:
    count(out, "c1", 5)
    frame = read_differentials(out).set_index("cell_type")
    assert frame[["count", "percent", "ci_low", "ci_high"]].iloc[0].to_list() == [5, 100, 20, 100]
    assert frame[["percent", "ci_low", "ci_high"]].isna().all(axis=1).to_dict() == {
        "segmented_neutrophil": False,
        "rbc": True,
    }
    assert frame["in_differential"].tolist() == [True, False]


def test_slide_row_comes_back_as_it_went(out: UPath) -> None:
    for row in (
        slide_row("c1", 5),
        replace(slide_row("c2", 0), um_per_px=None, scale_from=None, failed_fields=(), flags=()),
    ):
        commit(out, cells(0), differentials_table("s1", differential(0)), row)
        assert read_slide_row(out, "s1") == row


def test_slide_row_that_is_missing_or_broken(out: UPath) -> None:
    with pytest.raises(FileNotFoundError):
        read_slide_row(out, "s1")
    count(out, "c1", 5)
    Layout(out).table("slides", "s1").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"s1\.parquet.*holds no table of slides"):
        read_slide_row(out, "s1")


def test_no_cells_and_no_kinds(out: UPath) -> None:
    empty = Differential("blood", (), 0, 0, 0, None, None, None, None, ("no_cells",))
    commit(out, cells(0), differentials_table("s1", empty), slide_row("c1", 0))
    assert committed_count_id(out, "s1") == "c1"
    assert read_differentials(out).empty


def test_field_name_that_is_no_utf8_is_written() -> None:
    table = cells_table("s1", ["a\udcff.jpg"], np.zeros((1, 4), np.float32), ["rbc"], *[np.zeros(1, np.float32)] * 2)
    assert table["field"].to_pylist() == ["a\\udcff.jpg"]


def test_impossible_tables_are_refused(out: UPath) -> None:
    two = np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="1 fields, boxes"):
        cells_table("s1", ["a"], np.zeros((2, 4), np.float32), ["rbc"], two, two)
    rows = differentials_table("s1", differential(1))
    with pytest.raises(ValueError, match="a table of cells has columns"):
        commit(out, pa.table({"x": [1]}), rows, slide_row("c1", 1))
    for unsafe in ("a/b", "_a"):
        with pytest.raises(ValueError, match=f"'{unsafe}' is no safe file name"):
            commit(out, cells(1), rows, slide_row("c1", 1, unsafe))
    assert not out.exists() or contents(out) == {}
    with pytest.raises(ValueError, match=r"count_id '\.\./x'"):
        slide_row("../x", 1)
    with pytest.raises(ValueError, match="no time zone"):
        replace(slide_row("c1", 1), counted_at=datetime(2026, 1, 1))


# One count a slide


def test_committed_count_id(out: UPath) -> None:
    assert committed_count_id(out, "s1") is None
    count(out, "c1", 5)
    assert committed_count_id(out, "s1") == "c1"
    assert committed_count_id(out, "s2") is None


@pytest.mark.parametrize("content", [None, b"", b"PAR1 broken"])
def test_count_whose_row_is_gone_or_broken_does_not_stand(out: UPath, content: bytes | None) -> None:
    count(out, "c1", 5)
    row = Layout(out).table("slides", "s1")
    row.unlink() if content is None else row.write_bytes(content)
    assert committed_count_id(out, "s1") is None
    count(out, "c1", 5)
    assert committed_count_id(out, "s1") == "c1"


@pytest.mark.parametrize("kind", ["cells", "differentials"])
def test_count_that_lost_a_table_does_not_stand(out: UPath, kind: Any) -> None:
    count(out, "c1", 5)
    Layout(out).table(kind, "s1").unlink()
    assert committed_count_id(out, "s1") is None


def test_superseded_count_moves_to_history(out: UPath) -> None:
    count(out, "c1", 5)
    count(out, "c1", 2, "s2")
    first = contents(out)
    count(out, "c2", 9)
    after = contents(out)
    for kind in TABLES:
        assert after.pop(f"/history/c1/{kind}/s1.parquet") == first[f"/{kind}/s1.parquet"]
        assert after[f"/{kind}/s1.parquet"] != first[f"/{kind}/s1.parquet"]
        assert after[f"/{kind}/s2.parquet"] == first[f"/{kind}/s2.parquet"]
    assert after.keys() == first.keys()
    assert committed_count_id(out, "s1") == "c2"
    assert read_differentials(out).groupby("slide_id")["count"].max().to_dict() == {"s1": 9, "s2": 7}


def test_same_count_again_replaces_and_keeps_no_history(out: UPath) -> None:
    count(out, "c1", 5)
    count(out, "c1", 6)
    assert read_slide_row(out, "s1").n_differential == 6
    assert not any("history" in name for name in contents(out))


def test_longest_slide_id_fits_a_file_name(local_out: UPath) -> None:
    slide_id = safe_name("é" * 500)
    count(local_out, "c1", 5, slide_id)
    count(local_out, "c2", 5, slide_id)
    assert committed_count_id(local_out, slide_id) == "c2"


# Runs that end early


class Killed(BaseException):
    """The process is gone: nothing it would still do happens."""


@contextmanager
def killed_before_step(step: int) -> Iterator[list[str]]:
    """Every call that changes a file is a step; from the given one on, none happens. Yields the steps that did."""
    steps: list[str] = []
    patch = pytest.MonkeyPatch()

    def wrapped(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(steps) >= step:
                raise Killed
            steps.append(name)
            return real(*args, **kwargs)

        return call

    for name in ("replace", "unlink", "fsync", "mkdir"):
        patch.setattr(os, name, wrapped(name, getattr(os, name)))
    try:
        yield steps
    finally:
        patch.undo()


def history_of(out: UPath, count_id: str) -> dict[str, bytes]:
    """What a count that stood for a while left in the history."""
    return {name: content for name, content in contents(out).items() if name.startswith(f"/history/{count_id}/")}


def steps_of(out: UPath, *args: Any) -> int:
    with killed_before_step(10_000) as steps:
        count(out, *args)
    assert {"replace", "unlink", "fsync"} <= set(steps)
    return len(steps)


def reader_sees_one_whole_count(out: UPath, allowed: set[str]) -> None:
    frame = pd.read_parquet(Path(out.path) / "differentials")
    assert frame["cell_type"].tolist() == ["segmented_neutrophil", "rbc"]
    count_id = committed_count_id(out, "s1")
    assert count_id is None or count_id in allowed
    if count_id is not None:
        n = {"c1": 5, "c2": 9}[count_id]
        assert frame["count"].tolist() == [n, 7]
        assert len(pd.read_parquet(Path(out.path) / "cells")) == n
        assert read_slide_row(out, "s1").n_differential == n


@pytest.mark.parametrize("n_kills", [1, 2])
@pytest.mark.parametrize("standing", [True, False], ids=["recount", "first count"])
@pytest.mark.usefixtures("no_wait")
def test_a_run_killed_before_any_step_is_made_good_by_the_next(tmp_path: Path, standing: bool, n_kills: int) -> None:
    """Also where the count that stood before is asked for again: it must not pass for standing where it does not."""

    def begun(name: str) -> UPath:
        out = UPath(tmp_path / name)
        if standing:
            count(out, "c1", 5)
        return out

    undisturbed = begun("undisturbed")
    n_steps = steps_of(undisturbed, "c2", 9)
    left_temporaries = uncommitted = 0
    for step in range(n_steps):
        out = begun(f"killed-{step}")
        for _ in range(n_kills):
            with killed_before_step(step), suppress(Killed):  # a second run may have fewer steps to go
                count(out, "c2", 9)
            if standing or committed_count_id(out, "s1") is not None:
                reader_sees_one_whole_count(out, {"c1", "c2"})
        left_temporaries += bool(temporaries(out))
        uncommitted += committed_count_id(out, "s1") is None
        if standing and committed_count_id(out, "s1") != "c1":
            count(out, "c1", 5)
            reader_sees_one_whole_count(out, {"c1"})
        count(out, "c2", 9)
        assert contents(out) == contents(undisturbed) | history_of(out, "c2"), f"killed before step {step}"
    assert left_temporaries > 5
    assert uncommitted > 0


def test_temporaries_are_not_read_and_are_swept_everywhere(out: UPath) -> None:
    count(out, "c1", 5)
    count(out, "c2", 9)
    before = contents(out)
    for folder in ("cells", "differentials", "slides", ".wbc", "history/c1/cells"):
        (out / folder / ".s1.parquet.0123.tmp").write_bytes(b"half")
    (out / "cells" / "note.txt").write_bytes(b"a user's own file")
    assert len(read_differentials(out)) == 2
    Layout(out).sweep()
    assert contents(out) == before | {"/cells/note.txt": b"a user's own file"}


def test_sweeping_an_out_that_does_not_exist(out: UPath) -> None:
    Layout(out).sweep()
    assert not out.exists()


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_disk_full_leaves_the_old_count_whole(local_out: UPath) -> None:
    count(local_out, "c1", 5)
    before = contents(local_out)
    new = cells(4000), differentials_table("s1", differential(9)), slide_row("c2", 9)
    with files_no_larger_than(15_000), pytest.raises(OSError, match=r"cannot be written: File too large.*cells/s1"):
        commit(local_out, *new)
    assert contents(local_out) == before
    commit(local_out, *new)
    assert committed_count_id(local_out, "s1") == "c2"


@pytest.mark.parametrize("full_at", range(6))
def test_disk_full_at_any_file_leaves_the_old_count_whole(
    local_out: UPath, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    count(local_out, "c1", 5)
    before = contents(local_out)
    fsync, calls = os.fsync, iter(range(100))

    def filling(descriptor: int) -> None:
        if next(calls) >= full_at:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(OSError, match="cannot be written: No space left on device"):
        commit(local_out, cells(9), differentials_table("s1", differential(9)), slide_row("c2", 9))
    after = contents(local_out)
    assert {name: content for name, content in after.items() if "history" not in name} == before
    assert not temporaries(local_out)
    assert committed_count_id(local_out, "s1") == "c1"
