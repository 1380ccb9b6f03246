"""A slide that could not be counted says so in the tables, and is counted by the next run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs import make_job
from upath import UPath

from wbc.counting.slide import count_slide, is_counted, record_failure
from wbc.storage.counts import read_slide_row
from wbc.storage.layout import Layout
from wbc.storage.slides import discover


def test_a_failed_slide_is_in_the_tables_until_it_is_counted(painted_slide: UPath, tmp_path: Path) -> None:
    (slide,) = discover(painted_slide)
    job = make_job(UPath(tmp_path / "out"))
    Layout(job.out).check_writable()
    record_failure(slide, job, "a worker died 3 times")
    row = read_slide_row(job.out, slide.slide_id)
    assert "slide_failed" in row.flags
    assert (row.reason, row.count_id) == ("a worker died 3 times", None)
    assert (row.n_fields, row.n_fields_failed, row.failed_fields) == (3, 0, ())
    assert "fields_failed" not in row.flags
    assert row.n_cells == 0
    assert not is_counted(slide, job)
    with ThreadPoolExecutor(1) as executor:
        count_slide(slide, job, executor)
    assert "slide_failed" not in read_slide_row(job.out, slide.slide_id).flags
    assert is_counted(slide, job)
