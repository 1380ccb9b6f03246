"""What is counted is what was read: pixels that are lost or damaged on the way are read again, or their field fails."""

import errno
import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pandas as pd
import pytest
from jobs import make_job
from PIL import Image
from upath import UPath

from wbc.counting import slide as slide_room
from wbc.counting.slide import Job, count_ingested, count_slide, ingest_slide, is_counted
from wbc.storage.counts import read_slide_row
from wbc.storage.slides import discover
from wbc.types import Slide


@pytest.fixture
def slide(painted_slide: UPath) -> Slide:
    (slide,) = discover(painted_slide)
    return slide


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(UPath(tmp_path / "out"))


def chunk_of(job: Job, index: int) -> Path:
    (chunk,) = Path(job.pixels_group("s1").path).joinpath(f"{index:05d}").rglob("c.*")
    return chunk


def lose(job: Job) -> None:
    chunk_of(job, 1).unlink()


def blank(job: Job) -> None:
    chunk_of(job, 1).write_bytes(b"\0" * chunk_of(job, 1).stat().st_size)


def swap(job: Job) -> None:
    shutil.copy(chunk_of(job, 0), chunk_of(job, 1))


def lose_metadata(job: Job) -> None:
    shutil.rmtree(chunk_of(job, 1).parent)


def cells_by_field(job: Job) -> dict[str, int]:
    cells = pd.read_parquet(job.out / "cells" / "s1.parquet")
    return dict(cells.groupby("field", observed=True).size())


DAMAGE = [lose, blank, swap, lose_metadata]


@pytest.mark.parametrize("damage", DAMAGE)
def test_pixels_lost_or_damaged_are_read_again(
    damage: Callable[[Job], None], slide: Slide, job: Job, threads: Executor
) -> None:
    ingested = ingest_slide(slide, job, threads)
    damage(job)
    outcome = count_ingested(ingested, job, threads)
    assert (outcome.n_cells, outcome.failed_fields) == (18, ())
    assert cells_by_field(job) == {"f000.png": 5, "f001.png": 6, "f002.png": 7}
    assert is_counted(slide, job)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_field_whose_pixels_are_lost_and_whose_file_has_changed_fails_and_is_counted_next_time(
    damage: Callable[[Job], None], slide: Slide, job: Job, threads: Executor
) -> None:
    ingested = ingest_slide(slide, job, threads)
    damage(job)
    Image.new("RGB", (320, 240), "white").save(slide.field_paths[1].path)
    outcome = count_ingested(ingested, job, threads)
    assert [(f.field, f.reason) for f in outcome.failed_fields] == [("f001.png", "changed while it was counted")]
    row = read_slide_row(job.out, "s1")
    assert (row.n_cells, row.n_fields_failed, row.failed_fields) == (12, 1, outcome.failed_fields)
    assert "fields_failed" in row.flags
    assert not is_counted(slide, job)
    again = count_slide(slide, job, threads)
    assert (again.status, again.n_cells, again.failed_fields) == ("counted", 12, ())
    assert read_slide_row(job.out, "s1").count_id != row.count_id


def test_a_field_whose_pixels_are_lost_and_whose_file_is_gone_fails(slide: Slide, job: Job, threads: Executor) -> None:
    ingested = ingest_slide(slide, job, threads)
    lose(job)
    slide.field_paths[1].unlink()
    outcome = count_ingested(ingested, job, threads)
    assert [f.field for f in outcome.failed_fields] == ["f001.png"]
    assert "No such file" in outcome.failed_fields[0].reason
    assert outcome.n_cells == 12


def test_a_clean_up_that_fails_after_the_commit_is_logged_and_costs_nothing(
    slide: Slide, job: Job, threads: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(folder: UPath) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", folder.path)

    monkeypatch.setattr(slide_room, "remove_folder", busy)
    with caplog.at_level(logging.WARNING):
        outcome = count_slide(slide, job, threads)
    assert (outcome.status, outcome.n_cells) == ("counted", 18)
    assert "Device or resource busy" in caplog.text
    assert is_counted(slide, job)
    assert job.pixels_group("s1").exists()


def test_a_stage_tried_again_after_half_a_clean_up_counts_the_same(slide: Slide, job: Job, threads: Executor) -> None:
    ingested = ingest_slide(slide, job, threads)
    count_ingested(ingested, job, threads)
    assert not job.pixels_group("s1").exists()
    assert count_ingested(ingested, job, threads).n_cells == 18
    assert cells_by_field(job) == {"f000.png": 5, "f001.png": 6, "f002.png": 7}
