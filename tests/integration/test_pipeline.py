"""The way of one slide, from a folder of fields to tables that pandas reads, on any executor and file system."""

import os
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
import zarr
from jobs import make_job, only, row
from painted import make_slide
from PIL import Image
from upath import UPath

from benchmarks.counted import read_tables
from wbc.cells.tiles import TileSettings
from wbc.counting import worker
from wbc.counting.slide import CountSettings, WorkSettings, count_slide, is_counted
from wbc.models.registry import ModelRef
from wbc.storage import tables
from wbc.taxonomy import load_taxonomy
from wbc.types import WHOLE_RED_CELL_UM


def assert_equal(seen: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    for kind, table in expected.items():
        pd.testing.assert_frame_equal(seen[kind], table)


# A count


def test_a_folder_becomes_three_tables(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    done: list[tuple[int, int]] = []
    outcome = count_slide(only(painted_slide), make_job(out), threads, lambda *step: done.append(step))
    assert (outcome.status, outcome.n_fields, outcome.n_cells, outcome.failed_fields) == ("counted", 3, 18, ())
    assert done == [(2, 11), (1, 7)]
    read = read_tables(out)
    cells = read["cells"]
    assert cells.groupby("field").size().to_dict() == {"f000.png": 5, "f001.png": 6, "f002.png": 7}
    assert cells[["x0", "y0", "x1", "y1"]].iloc[0].tolist() == pytest.approx([13, 13, 48, 48], abs=2)
    assert set(cells["cell_type"]) == {"rbc"}
    assert cells["type_score"].isna().all()
    counts = read["differentials"].set_index("cell_type")
    assert counts["count"]["rbc"] == 18
    assert counts["count"].sum() == 18
    assert counts["percent"].isna().all()
    assert "no_cells" in row(out)["flags"]
    assert row(out)["seconds"]["total"] > 0


@pytest.mark.parametrize("chunk_fields", [1, 3, 8])
def test_cells_do_not_depend_on_how_the_work_is_cut(
    painted_slide: UPath,
    out: UPath,
    tmp_path: Path,
    threads: Executor,
    chunk_fields: int,
) -> None:
    settings = CountSettings(tiles=TileSettings(tile_px=120, overlap_um=9.0, origin=(37, 11)))
    work = WorkSettings(chunk_fields, batch_px=20_000)
    count_slide(only(painted_slide), make_job(out), threads)
    other = UPath(tmp_path / "other")
    count_slide(only(painted_slide), make_job(other, settings=settings, work=work), threads)
    pd.testing.assert_frame_equal(read_tables(other)["cells"], read_tables(out)["cells"])


@pytest.mark.dask
def test_dask_workers_make_the_same_tables_as_threads(
    painted_slide: UPath, out: UPath, tmp_path: Path, threads: Executor
) -> None:
    distributed = pytest.importorskip("distributed")
    count_slide(only(painted_slide), make_job(out), threads)
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0", "processes": True}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        count_slide(only(painted_slide), make_job(UPath(tmp_path / "dask")), client.get_executor(pure=False))
    assert_equal(read_tables(UPath(tmp_path / "dask")), read_tables(out))


def test_other_processes_make_the_same_tables_as_threads(
    painted_slide: UPath, out: UPath, tmp_path: Path, threads: Executor
) -> None:
    (painted_slide / "broken.png").write_bytes(b"no picture")
    count_slide(only(painted_slide), make_job(out), threads)
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        count_slide(only(painted_slide), make_job(UPath(tmp_path / "processes")), processes)
    assert_equal(read_tables(UPath(tmp_path / "processes")), read_tables(out))


def test_slides_and_tables_may_lie_in_memory(
    painted_slide: UPath,
    out: UPath,
    threads: Executor,
) -> None:
    root = UPath(f"memory://{uuid4().hex}")
    slide, job = only(make_slide(root / "slides" / "s1", 3)), make_job(root / "out")
    try:
        count_slide(slide, job, threads)
        count_slide(only(painted_slide), make_job(out), threads)
        seen, expected = read_tables(root / "out"), read_tables(out)
        for read in (seen, expected):
            read["slides"] = read["slides"].drop(columns=["count_id", "source"])
        assert_equal(seen, expected)
        assert is_counted(slide, job)
        assert not list((root / "out" / ".wbc").rglob("*.zarr"))
    finally:
        root.fs.rm(root.path, recursive=True)


# A second run


def no_field_may_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("a field was opened")

    for name in ("field_content", "decode_field", "um_per_px_of"):
        monkeypatch.setattr(worker, name, opened)


def test_a_counted_slide_is_known_without_opening_a_field(
    painted_slide: UPath, out: UPath, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, job = only(painted_slide), make_job(out)
    assert not is_counted(slide, job)
    count_slide(slide, job, threads)
    no_field_may_be_opened(monkeypatch)
    assert is_counted(slide, job)
    assert is_counted(only(painted_slide), make_job(out, keep_pixels=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": CountSettings(min_score=0.6)},
        {"taxonomy": load_taxonomy("wang2021")},
        {"detector": ModelRef("other", "0" * 64)},
        {"classifier": ModelRef("other", "0" * 64)},
        {"force": True},
        {"verify": True},
    ],
)
def test_another_job_is_another_count(
    painted_slide: UPath, out: UPath, threads: Executor, changes: dict[str, Any]
) -> None:
    count_slide(only(painted_slide), make_job(out), threads)
    assert not is_counted(only(painted_slide), make_job(out, **changes))


def test_another_scale_given_is_another_count(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    slide = only(painted_slide)
    count_slide(slide, make_job(out), threads)
    assert not is_counted(replace(slide, um_per_px=0.2), make_job(out))


def test_fields_added_removed_or_renamed_make_another_count(
    painted_slide: UPath, out: UPath, threads: Executor
) -> None:
    job = make_job(out)
    count_slide(only(painted_slide), job, threads)
    (painted_slide / "f002.png").rename(painted_slide / "f003.png")
    assert not is_counted(only(painted_slide), job)
    (painted_slide / "f003.png").unlink()
    assert not is_counted(only(painted_slide), job)
    assert count_slide(only(painted_slide), job, threads).n_cells == 11


def test_a_touched_field_is_read_again_and_nothing_more(
    painted_slide: UPath, out: UPath, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(out)
    first = count_slide(only(painted_slide), job, threads)
    counted_at = row(out)["counted_at"]
    os.utime(painted_slide.path + "/f001.png", (1, 1))
    assert not is_counted(only(painted_slide), job)
    monkeypatch.setattr("wbc.cells.detect.detect", None)
    again = count_slide(only(painted_slide), job, threads)
    assert (again.status, again.n_fields, again.n_cells) == ("unchanged", first.n_fields, first.n_cells)
    assert row(out)["counted_at"] == counted_at
    assert is_counted(only(painted_slide), job)


def test_a_changed_field_is_counted_and_the_old_count_kept(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    job = make_job(out)
    count_slide(only(painted_slide), job, threads)
    old = row(out)
    make_slide(painted_slide, 1, cells=9)
    assert not is_counted(only(painted_slide), job)
    assert count_slide(only(painted_slide), job, threads).n_cells == 22
    assert row(out)["n_cells"] == 22
    assert [p.name for p in (out / "history").iterdir()] == [old["count_id"]]
    kept = row(out / "history" / old["count_id"])
    assert (kept["n_cells"], kept["counted_at"]) == (18, old["counted_at"])
    assert pd.read_parquet(out.path + "/differentials")["count"].sum() == 22


def test_force_counts_again_in_place(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    count_slide(only(painted_slide), make_job(out), threads)
    counted_at = row(out)["counted_at"]
    assert count_slide(only(painted_slide), make_job(out, force=True), threads).status == "counted"
    assert row(out)["counted_at"] > counted_at
    assert not (out / "history").exists()


def test_verify_finds_what_size_and_time_do_not_tell(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    field = painted_slide / "f000.bmp"
    Image.open(painted_slide.path + "/f000.png").save(field.path)
    (painted_slide / "f000.png").unlink()
    count_slide(only(painted_slide), make_job(out), threads)
    assert count_slide(only(painted_slide), make_job(out, verify=True), threads).status == "unchanged"
    status = os.stat(field.path)
    Image.new("RGB", (320, 240), "white").save(field.path)
    os.utime(field.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_counted(only(painted_slide), make_job(out))
    assert count_slide(only(painted_slide), make_job(out, verify=True), threads).n_cells == 13


# Pixels


def test_pixels_go_unless_they_are_kept(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    count_slide(only(painted_slide), make_job(out), threads)
    assert not list(Path(out.path).rglob("*.zarr"))
    for changes in ({"force": True}, {"verify": True}):  # counted, then found unchanged
        count_slide(only(painted_slide), make_job(out, keep_pixels=True, **changes), threads)
        group = zarr.open_group(out.path + "/pixels/s1.zarr", mode="r")
        assert group.attrs["fields"] == ["f000.png", "f001.png", "f002.png"]
        field = group["00002"]
        assert isinstance(field, zarr.Array)
        assert np.array_equal(np.asarray(field[:]), np.asarray(Image.open(painted_slide.path + "/f002.png")))


# Scale


def test_the_scale_given_is_used_and_recorded(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    outcome = count_slide(replace(only(painted_slide), um_per_px=0.1), make_job(out), threads)
    assert outcome.n_cells == 18
    assert (row(out)["um_per_px"], row(out)["scale_from"]) == (0.1, "given")


def test_the_scale_is_read_from_tiff_headers(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    for path in list(painted_slide.iterdir()):
        picture = Image.open(path.path)
        picture.save(path.with_suffix(".tif").path, resolution=40_000.0, resolution_unit="cm")
        path.unlink()
    count_slide(only(painted_slide), make_job(out), threads)
    assert row(out)["um_per_px"] == pytest.approx(0.25)
    assert row(out)["scale_from"] == "metadata"
    assert row(out)["n_cells"] == 18


def test_the_scale_is_measured_on_red_cells(tmp_path: Path, out: UPath, threads: Executor) -> None:
    slide = only(make_slide(UPath(tmp_path / "slides" / "s1"), 2, cells=18))
    count_slide(slide, make_job(out), threads)
    assert row(out)["um_per_px"] == pytest.approx(WHOLE_RED_CELL_UM / 35, rel=0.05)
    assert row(out)["scale_from"] == "red_cells"
    assert "scale_unknown" not in row(out)["flags"]


def test_a_scale_that_nothing_tells_is_flagged(tmp_path: Path, out: UPath, threads: Executor) -> None:
    count_slide(only(make_slide(UPath(tmp_path / "slides" / "s1"), 3, cells=2)), make_job(out), threads)
    assert pd.isna(row(out)["um_per_px"])
    assert pd.isna(row(out)["scale_from"])
    assert "scale_unknown" in row(out)["flags"]


# Bad fields and empty slides


# White cells


def test_the_tables_have_the_columns_that_others_read(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    count_slide(only(painted_slide), make_job(out), threads)
    for kind, schema in tables.SCHEMAS.items():
        assert list(pd.read_parquet(f"{out.path}/{kind}").columns) == schema.names
