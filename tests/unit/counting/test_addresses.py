"""A slide_id in OUT stands for one folder, and a folder for one slide_id, until somebody says that it was moved."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixture_types import CommitSlide
from jobs import make_job
from painted import make_slide
from upath import UPath

from benchmarks.counted import read_tables
from wbc.counting.addresses import settle_addresses
from wbc.counting.slide import SlideOutcome, count_slide, is_counted, unchanged
from wbc.storage.counts import change_source, read_slide_row, read_source
from wbc.storage.layout import Layout
from wbc.storage.slides import discover

Count = Callable[..., dict[str, SlideOutcome]]


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def results(tmp_path: Path) -> UPath:
    return UPath(tmp_path / "out")


@pytest.fixture
def count(results: UPath, executor: Executor) -> Count:
    """What a run makes of the slides in a folder."""

    def counted(root: Path, *, rename: bool = False, **options: bool) -> dict[str, SlideOutcome]:
        job, slides = make_job(results, **options), discover(UPath(root))
        settle_addresses(slides, job, rename=rename)
        return {
            s.slide_id: unchanged(s, results) if is_counted(s, job) else count_slide(s, job, executor) for s in slides
        }

    return counted


def statuses(outcomes: dict[str, SlideOutcome]) -> dict[str, str]:
    return {slide_id: outcome.status for slide_id, outcome in outcomes.items()}


def without_address(out: UPath, slide_id: str) -> None:
    """Leave a slide's row as a version wrote it that knew no addresses."""
    path = Layout(out).table("slides", slide_id)
    pq.write_table(pq.read_table(path).drop_columns("source").replace_schema_metadata(), path)


def test_a_row_tells_its_slides_address(count: Count, tmp_path: Path, results: UPath) -> None:
    make_slide(UPath(tmp_path / "slides" / "s1"), 1)
    count(tmp_path / "slides")
    assert read_source(results, "s1") == str(tmp_path / "slides" / "s1")
    assert read_slide_row(results, "s1").source == str(tmp_path / "slides" / "s1")
    assert read_source(results, "s2") is None


@pytest.mark.parametrize("options", [{}, {"verify": True}, {"force": True}])
def test_another_slide_of_the_same_id_is_refused_with_both_addresses(
    count: Count, tmp_path: Path, results: UPath, options: dict[str, bool]
) -> None:
    one, other = tmp_path / "batchA", tmp_path / "batchB"
    make_slide(UPath(one / "slide-01"), 1, cells=5)
    make_slide(UPath(other / "slide-01"), 1, cells=9)
    count(one)
    before = read_tables(results)
    with pytest.raises(ValueError, match="--rename goes on with them; other slides need another OUT") as refused:
        count(other, **options)
    assert f"'slide-01' was '{one}/slide-01' and is '{other}/slide-01' now" in str(refused.value)
    assert read_tables(results)["cells"].equals(before["cells"])
    assert count(one)["slide-01"].status == "unchanged"


def test_a_copy_to_the_last_stamp_is_refused_too(count: Count, tmp_path: Path) -> None:
    """Size and time tell nothing between two folders."""
    field = make_slide(UPath(tmp_path / "batchA" / "slide-01"), 1) / "f000.png"
    count(tmp_path / "batchA")
    twin = tmp_path / "batchB" / "slide-01" / "f000.png"
    twin.parent.mkdir(parents=True)
    Path(field).rename(twin)
    make_slide(UPath(tmp_path / "batchA" / "slide-01"), 1)
    with pytest.raises(ValueError, match="knows these slides otherwise"):
        count(tmp_path / "batchB")


def test_many_are_named_in_one_line(count: Count, tmp_path: Path) -> None:
    for batch in ("batchA", "batchB"):
        for i in range(5):
            make_slide(UPath(tmp_path / batch / f"slide-{i}"), 1)
    count(tmp_path / "batchA")
    with pytest.raises(ValueError, match=r"slide-2.*; and 2 more") as refused:
        count(tmp_path / "batchB")
    assert "slide-3" not in str(refused.value)


def test_a_slide_that_was_moved_goes_on_with_rename(
    count: Count,
    tmp_path: Path,
    results: UPath,
) -> None:
    make_slide(UPath(tmp_path / "slides" / "s1"), 2)
    make_slide(UPath(tmp_path / "slides" / "s2"), 1)
    count(tmp_path / "slides")
    before = read_slide_row(results, "s1")
    (tmp_path / "slides").rename(tmp_path / "archive")
    make_slide(UPath(tmp_path / "archive" / "s2"), 3)
    renamed = settle_addresses(discover(UPath(tmp_path / "archive")), make_job(results), rename=True)
    assert renamed[0] == f"'s1' was '{tmp_path}/slides/s1' and is '{tmp_path}/archive/s1' now"
    assert statuses(count(tmp_path / "archive", rename=True)) == {"s1": "unchanged", "s2": "counted"}
    assert read_slide_row(results, "s1") == replace(before, source=str(tmp_path / "archive" / "s1"))
    assert read_source(results, "s2") == str(tmp_path / "archive" / "s2")
    assert statuses(count(tmp_path / "archive")) == {"s1": "unchanged", "s2": "unchanged"}


def test_what_rename_replaces_is_in_the_history(count: Count, tmp_path: Path, results: UPath) -> None:
    make_slide(UPath(tmp_path / "batchA" / "s1"), 1, cells=5)
    make_slide(UPath(tmp_path / "batchB" / "s1"), 1, cells=9)
    count(tmp_path / "batchA")
    before = read_slide_row(results, "s1")
    assert count(tmp_path / "batchB", rename=True)["s1"].n_cells == 9
    assert read_slide_row(results / "history" / str(before.count_id), "s1") == before


def test_a_folder_counted_from_another_root_is_not_counted_twice(count: Count, tmp_path: Path, results: UPath) -> None:
    make_slide(UPath(tmp_path / "lab" / "slides" / "s1"), 1)
    count(tmp_path / "lab" / "slides")
    with pytest.raises(ValueError, match="is 's1' and would be 'slides%2Fs1' too"):
        count(tmp_path / "lab")
    assert statuses(count(tmp_path / "lab", rename=True)) == {"slides%2Fs1": "counted"}
    assert Layout(results).slide_ids() == Layout(results).slide_ids("cells") == ["slides%2Fs1"]
    assert read_tables(results)["slides"]["n_cells"].sum() == 5


def test_pictures_in_the_root_are_one_slide_whatever_comes_beside(count: Count, tmp_path: Path, results: UPath) -> None:
    make_slide(UPath(tmp_path / "slides"), 1)
    count(tmp_path / "slides")
    make_slide(UPath(tmp_path / "slides" / "s1"), 1, cells=7)
    assert statuses(count(tmp_path / "slides")) == {"slides": "unchanged", "s1": "counted"}
    assert read_tables(results)["slides"]["n_cells"].sum() == 12


@pytest.mark.parametrize("options", [{}, {"verify": True}])
def test_a_row_of_an_older_version_gets_its_address_and_keeps_its_count(
    count: Count, tmp_path: Path, results: UPath, options: dict[str, bool]
) -> None:
    make_slide(UPath(tmp_path / "slides" / "s1"), 1)
    count(tmp_path / "slides")
    before = read_slide_row(results, "s1")
    without_address(results, "s1")
    assert read_slide_row(results, "s1").source is None
    assert count(tmp_path / "slides", **options)["s1"].status == "unchanged"
    assert read_slide_row(results, "s1") == before
    assert not (results / "history").exists()


def test_a_row_of_an_older_version_keeps_no_address_for_a_count_that_was_cut_off(
    count: Count,
    tmp_path: Path,
    results: UPath,
) -> None:
    """Until it is counted again, nobody knows whose row it is."""
    make_slide(UPath(tmp_path / "batchA" / "s1"), 1)
    count(tmp_path / "batchA")
    without_address(results, "s1")
    make_slide(UPath(tmp_path / "batchB" / "s1"), 2)
    settle_addresses(discover(UPath(tmp_path / "batchB")), make_job(results), rename=False)
    assert read_source(results, "s1") is None
    assert count(tmp_path / "batchB")["s1"].n_fields == 2
    assert read_source(results, "s1") == str(tmp_path / "batchB" / "s1")


def test_a_broken_row_has_no_address(results: UPath, commit_slide: CommitSlide) -> None:
    commit_slide(results, "s1", ["rbc"])
    change_source(results, "s1", "/slides/s1")
    assert read_source(results, "s1") == "/slides/s1"
    path = Layout(results).table("slides", "s1")
    path.write_bytes(path.read_bytes()[:-20])
    assert read_source(results, "s1") is None
    with pytest.raises((ValueError, pa.ArrowException)):
        change_source(results, "s1", "/elsewhere")
