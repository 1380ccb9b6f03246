"""A slide's count: one at a time, whole for every reader, and nothing half-done whatever ends the run."""

import itertools
import json
import os
import resource
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_counts import contents, count, read_differentials, sample_tables, slide_row, temporaries
from upath import UPath

from wbc.storage import counts
from wbc.storage.counts import commit, committed_count_id, has_evidence, read_count, read_evidence, read_slide_row
from wbc.storage.layout import TABLES, Layout, TableName
from wbc.storage.names import safe_name


@pytest.fixture
def local_out(tmp_path: Path) -> UPath:
    return UPath(tmp_path / "out")


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: a kill ends the process, not the machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


COUNTED = {"c1": 5, "c2": 9}
OTHERS = [name for name in TABLES if name != "slides"]

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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers do not wait for a commit to end."""
    monkeypatch.setattr(counts, "PATIENCE_SECONDS", 0.0)


def test_a_bit_that_flips_in_the_row_of_a_slide_is_noticed_or_changes_nothing(local_out: UPath) -> None:
    """Whoever reads the whole row with pandas either has the values that were written, or the count does not stand."""
    count(local_out, "c1", 5)
    path, n_noticed = Layout(local_out).table("slides", "s1"), 0
    whole = path.read_bytes()
    written = pd.read_parquet(path.path)
    for bit in range(0, 8 * len(whole), 211):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if committed_count_id(local_out, "s1") is None:
            n_noticed += 1
        else:
            pd.testing.assert_frame_equal(pd.read_parquet(path.path), written)
    assert n_noticed > 50
    count(local_out, "c1", 5)
    assert committed_count_id(local_out, "s1") == "c1"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("table", OTHERS)
@pytest.mark.parametrize("damage", ["gone", "cut short", "emptied", "of another count"])
def test_a_count_with_a_broken_table_does_not_stand_and_is_refused_by_name(
    out: UPath, table: TableName, damage: str
) -> None:
    count(out, "c1", 5)
    path = Layout(out).table(table, "s1")
    content = path.read_bytes()
    count(out, "c2", 9)
    damaged = {"cut short": path.read_bytes()[:-200], "emptied": b"", "of another count": content}
    path.unlink() if damage == "gone" else path.write_bytes(damaged[damage])
    assert committed_count_id(out, "s1") is None
    with pytest.raises(ValueError, match=rf"{table}/s1\.parquet"):
        (read_count if table in ("cells", "differentials") else read_evidence)(out, "s1")
    count(out, "c2", 9)
    assert committed_count_id(out, "s1") == "c2"
    assert len(read_count(out, "s1").cells) == len(read_evidence(out, "s1")[1].detections) == 9


@pytest.mark.parametrize("table", OTHERS)
def test_a_broken_table_does_not_go_to_the_history(out: UPath, table: TableName) -> None:
    count(out, "c1", 5)
    Layout(out).table(table, "s1").write_bytes(b"PAR1 broken")
    count(out, "c2", 9)
    kept = {Path(name).parent.name for name in contents(out) if name.startswith("/history/c1/")}
    assert kept == {*TABLES, "superseded"} - {table}


def test_a_count_of_an_older_version_is_read_and_counted_again(out: UPath) -> None:
    count(out, "c1", 5)
    path = Layout(out).table("slides", "s1")
    row = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
    sink = pa.BufferOutputStream()
    pq.write_table(row.drop_columns([f"{name}_digest" for name in OTHERS]).replace_schema_metadata(), sink)
    path.write_bytes(sink.getvalue().to_pybytes())
    assert read_count(out, "s1").row.cells_digest is None
    assert not has_evidence(read_count(out, "s1").row)
    with pytest.raises(ValueError, match="an older version counted it, which kept no detections"):
        read_evidence(out, "s1")
    assert len(read_count(out, "s1").cells) == 5
    assert committed_count_id(out, "s1") is None
    count(out, "c2", 9)
    kept = {f"/history/c1/{name}/s1.parquet" for name in TABLES}
    assert {name for name in contents(out) if "/c1/" in name} == kept | {"/history/c1/superseded/s1.json"}


def test_readers_beside_a_recount_miss_nothing_and_see_one_count_at_a_time(local_out: UPath) -> None:
    count(local_out, "c1", 5)
    done = threading.Event()

    def recount() -> None:
        for count_id in itertools.cycle(["c2", "c1"]):
            n = COUNTED[count_id]
            commit(local_out, sample_tables(n), slide_row(count_id, n))
            if done.is_set():
                return

    with ThreadPoolExecutor(1) as recounting:
        loop = recounting.submit(recount)
        try:
            seen = [read_count(local_out, "s1") for _ in range(300)]
            rows = [pd.read_parquet(f"{local_out.path}/slides") for _ in range(100)]
        finally:
            done.set()
        loop.result()
    sets = {(count.row.count_id, len(count.cells), count.differentials["count"][0].as_py()) for count in seen}
    assert sets == {("c1", 5, 5), ("c2", 9, 9)}
    assert all(row["slide_id"].tolist() == ["s1"] for row in rows)


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
    why = json.loads(after.pop("/history/c1/superseded/s1.json"))
    assert why == {"replaced_by": "c2", "why": "counted anew"}
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
    assert {"replace", "mkdir", "fsync"} <= set(steps)
    return len(steps)


def reader_sees_one_whole_count(out: UPath, allowed: set[str]) -> None:
    frame = pd.read_parquet(Path(out.path) / "differentials")
    assert frame["cell_type"].tolist() == ["segmented_neutrophil", "rbc"]
    count_id = committed_count_id(out, "s1")
    if count_id is None:
        torn = read_slide_row(out, "s1").count_id
        with pytest.raises(ValueError, match="is not of the count"):
            read_count(out, "s1")
        kept = read_count(Layout(out).history(torn).out, "s1")
        assert (kept.row.count_id, len(kept.cells)) == (torn, COUNTED[torn])
        assert len(read_evidence(Layout(out).history(torn).out, "s1")[1].detections) == COUNTED[torn]
    else:
        assert count_id in allowed
        whole, n = read_count(out, "s1"), COUNTED[count_id]
        assert frame["count"].tolist() == whole.differentials["count"].to_pylist() == [n, 7]
        assert len(pd.read_parquet(Path(out.path) / "cells")) == len(whole.cells) == n
        assert whole.row.n_differential == n
        row, evidence = read_evidence(out, "s1")
        assert (row.count_id, len(evidence.detections), evidence.fields[0].n_cells) == (count_id, n, n)


@pytest.mark.parametrize("n_kills", [1, 2])
@pytest.mark.parametrize("standing", [True, False], ids=["recount", "first count"])
@pytest.mark.usefixtures("no_wait", "impatient")
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
    new = sample_tables(4000, 9), slide_row("c2", 9)
    with files_no_larger_than(15_000), pytest.raises(OSError, match=r"cannot be written: File too large.*cells/s1"):
        commit(local_out, *new)
    assert contents(local_out) == before
    commit(local_out, *new)
    assert committed_count_id(local_out, "s1") == "c2"


@pytest.mark.parametrize("full_at", range(2 * len(TABLES)))
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
        commit(local_out, sample_tables(9), slide_row("c2", 9))
    after = contents(local_out)
    assert {name: content for name, content in after.items() if "history" not in name} == before
    assert not temporaries(local_out)
    assert committed_count_id(local_out, "s1") == "c1"
