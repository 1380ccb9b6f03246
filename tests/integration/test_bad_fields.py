"""Fields that cannot be read, slides without one, and fields without a cell: what the tables say of them."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pandas as pd
from jobs import make_job, only, row
from painted import make_slide
from PIL import Image
from upath import UPath

from benchmarks.counted import read_tables
from wbc.counting.slide import SlideOutcome, count_ingested, count_slide, ingest_slide, is_counted, unchanged
from wbc.storage.slides import discover


def test_a_bad_field_costs_itself_alone_and_is_named(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    whole = (painted_slide / "f001.png").read_bytes()
    (painted_slide / "a text.jpg").write_bytes(b"dear laboratory")
    (painted_slide / "empty.png").write_bytes(b"")
    (painted_slide / "f001.png").write_bytes(whole[: len(whole) // 2])
    job = make_job(out)
    outcome = count_slide(only(painted_slide), job, threads)
    assert [f.field for f in outcome.failed_fields] == ["a text.jpg", "empty.png", "f001.png"]
    assert all(f.reason for f in outcome.failed_fields)
    assert (outcome.status, outcome.n_fields, outcome.n_cells) == ("counted", 5, 12)
    recorded = [(f["field"], f["reason"]) for f in row(out)["failed_fields"]]
    assert recorded == [(f.field, f.reason) for f in outcome.failed_fields]
    assert row(out)["n_fields_failed"] == 3
    assert "fields_failed" in row(out)["flags"]
    (painted_slide / "f001.png").write_bytes(whole)
    assert not is_counted(only(painted_slide), job)
    assert count_slide(only(painted_slide), job, threads).n_cells == 18


def test_a_field_that_vanishes_on_the_way_is_named(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    slide = only(painted_slide)
    (painted_slide / "f000.png").unlink()
    outcome = count_slide(slide, make_job(out), threads)
    assert ([f.field for f in outcome.failed_fields], outcome.n_cells) == (["f000.png"], 13)
    assert not is_counted(slide, make_job(out))


def test_fields_that_come_while_a_slide_is_counted_are_named(
    painted_slide: UPath, out: UPath, threads: Executor
) -> None:
    """As a scanner that still writes leaves them: what was counted is not the whole slide."""
    late = painted_slide / "f002.png"
    content = late.read_bytes()
    late.unlink()
    slide, job = only(painted_slide), make_job(out)
    ingested = ingest_slide(slide, job, threads)
    late.write_bytes(content)
    outcome = count_ingested(ingested, job, threads)
    assert [(f.field, f.reason.split(";")[0]) for f in outcome.failed_fields] == [
        ("f002.png", "came to the folder while the slide was counted")
    ]
    assert (outcome.n_fields, outcome.n_cells) == (3, 11)
    assert "fields_failed" in row(out)["flags"]
    assert not is_counted(only(painted_slide), job)
    again = count_slide(only(painted_slide), job, threads)
    assert (again.failed_fields, again.n_cells) == ((), 18)
    late.unlink()
    assert not is_counted(only(painted_slide), job)


def assert_empty(out: UPath, outcome: SlideOutcome, read: dict[str, pd.DataFrame], reason: str = "") -> None:
    assert (outcome.status, outcome.reason, outcome.n_cells) == ("failed" if reason else "counted", reason, 0)
    assert row(out)["reason"] == reason if reason else pd.isna(row(out)["reason"])
    assert ("slide_failed" in row(out)["flags"]) == bool(reason)
    assert len(read["cells"]) == 0
    assert (read["differentials"]["count"] == 0).all()
    assert read["differentials"][["percent", "ci_low", "ci_high"]].isna().all(axis=None)
    assert "no_cells" in row(out)["flags"]


def test_a_slide_of_bad_fields_alone_is_a_row_that_names_them(tmp_path: Path, out: UPath, threads: Executor) -> None:
    (tmp_path / "slides" / "s1").mkdir(parents=True)
    for name in ("a.jpg", "b.png"):
        (tmp_path / "slides" / "s1" / name).write_bytes(b"no picture")
    slide = only(UPath(tmp_path / "slides" / "s1"))
    outcome = count_slide(slide, make_job(out), threads)
    reason = "no field could be counted; the first, a.jpg: is no JPEG, PNG, TIFF or BMP image"
    assert_empty(out, outcome, read_tables(out), reason)
    assert [f["field"] for f in row(out)["failed_fields"]] == ["a.jpg", "b.png"]
    assert row(out)["n_fields_failed"] == 2
    assert is_counted(slide, make_job(out))
    assert unchanged(slide, out) == replace(outcome, seconds=0.0)


def test_a_slide_without_an_image_is_a_row_that_says_so(tmp_path: Path, out: UPath, threads: Executor) -> None:
    make_slide(UPath(tmp_path / "slides" / "s2"), 1)
    (tmp_path / "slides" / "s1").mkdir(parents=True)
    slide, _ = discover(UPath(tmp_path / "slides"))
    outcome = count_slide(slide, make_job(out), threads)
    assert_empty(out, outcome, read_tables(out), "the folder holds no image")
    assert (row(out)["n_fields"], row(out)["n_fields_failed"]) == (0, 0)
    assert "fields_failed" not in row(out)["flags"]
    assert is_counted(slide, make_job(out))
    assert unchanged(slide, out) == replace(outcome, seconds=0.0)


def test_fields_without_a_cell_are_counted_to_nothing(tmp_path: Path, out: UPath, threads: Executor) -> None:
    (tmp_path / "slides" / "s1").mkdir(parents=True)
    Image.new("RGB", (320, 240), "white").save(tmp_path / "slides" / "s1" / "white.png")
    outcome = count_slide(only(UPath(tmp_path / "slides" / "s1")), make_job(out), threads)
    assert_empty(out, outcome, read_tables(out))
    assert outcome.failed_fields == ()
