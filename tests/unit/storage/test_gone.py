"""Slides of OUT that are not there any more are known, and so are pictures that two slides count."""

from pathlib import Path

import pytest
from fixture_types import CommitSlide
from painted import make_slide
from sample_counts import count
from upath import UPath

from wbc.storage.counts import change_source, committed_count_id, read_slide_row, retire
from wbc.storage.gone import GoneSlide, SharedPictures, gone_slides, shared_pictures, slides_to_prune
from wbc.storage.layout import TABLES, Layout
from wbc.storage.stamps import FieldRecord, read_stamps, write_stamps
from wbc.types import Slide


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Three slides."""
    for name in ("a", "b", "c"):
        make_slide(UPath(tmp_path / "slides" / name), 1)
    return tmp_path / "slides"


@pytest.fixture
def results(slides: Path, tmp_path: Path, commit_slide: CommitSlide) -> UPath:
    """An OUT that knows them, and a slide of an older version."""
    out = UPath(tmp_path / "out")
    for name in ("a", "b", "c", "old"):
        commit_slide(out, name, ["rbc"])
        change_source(out, name, None if name == "old" else str(slides / name))
    return out


def remove(slides: Path, *names: str) -> None:
    for name in names:
        (slides / name / "f000.png").unlink()
        (slides / name).rmdir()


def test_slides_whose_folder_has_gone(results: UPath, slides: Path) -> None:
    assert gone_slides(results, ["old"]) == []
    remove(slides, "b")
    gone, unknown = gone_slides(results)
    assert gone == GoneSlide("b", str(slides / "b"))
    assert unknown == GoneSlide("old", None)
    assert gone_slides(results, ["b", "old"]) == []


def test_those_that_have_gone_are_to_be_pruned_and_those_that_are_named(results: UPath, slides: Path) -> None:
    assert slides_to_prune(results) == []
    remove(slides, "b")
    assert [g.slide_id for g in slides_to_prune(results)] == ["b"]
    assert [g.slide_id for g in slides_to_prune(results, ["old", "a"])] == ["a", "old"]
    with pytest.raises(ValueError, match="no count of slide 'x'"):
        slides_to_prune(results, ["a", "x"])


def test_where_not_one_slide_is_there_nothing_is_pruned_unasked(results: UPath, slides: Path) -> None:
    retire(results, "old")
    remove(slides, "a", "b", "c")
    (slides / "another").mkdir()
    with pytest.raises(ValueError, match="is a disk not mounted"):
        slides_to_prune(results)
    assert len(slides_to_prune(results, ["a", "b", "c"])) == 3


def test_a_count_that_is_retired_is_whole_in_the_history(out: UPath) -> None:
    for slide_id in ("s1", "s2"):
        count(out, "c1", 7, slide_id)
    before = {name: Layout(out).table(name, "s1").read_bytes() for name in TABLES}
    retire(out, "s1")
    kept = Layout(out).history("c1")
    assert {name: kept.table(name, "s1").read_bytes() for name in TABLES} == before
    assert not Layout(out).stamps("s1").exists()
    assert [Layout(out).slide_ids(name) for name in TABLES] == [["s2"]] * len(TABLES)
    assert committed_count_id(out, "s2") == "c1"
    retire(out, "s1")


def test_who_is_killed_while_retiring_goes_on(out: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    count(out, "c1", 7)
    before = {name: Layout(out).table(name, "s1").read_bytes() for name in TABLES}
    unlink = type(out).unlink

    def killed(path: UPath, *arguments: object, **options: bool) -> None:
        if path.parent.name == "differentials":
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(out), "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            retire(out, "s1")
    assert read_slide_row(out, "s1").slide_id == "s1"
    retire(out, "s1")
    kept = Layout(out).history("c1")
    assert {name: kept.table(name, "s1").read_bytes() for name in TABLES} == before
    assert Layout(out).slide_ids() == []


def test_pictures_that_two_slides_hold(out: UPath) -> None:
    for slide_id, digests in {"a": "12", "b": "123", "c": "3", "d": ("", "4")}.items():
        count(out, "c1", 7, slide_id)
        records = {f"{i}.jpg": FieldRecord(1, "t", digest) for i, digest in enumerate(digests)}
        write_stamps(out, Slide(slide_id, ()), records)
    assert shared_pictures(out) == [SharedPictures(("a", "b"), 2), SharedPictures(("b", "c"), 1)]


def test_where_no_picture_is_shared_digests_are_read_once_and_not_kept(
    out: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slide_id in "abc":
        count(out, "c1", 7, slide_id)
        records = {f"{i}.jpg": FieldRecord(1, "t", f"{slide_id}{i // 2}") for i in range(4)}  # twice in one slide
        write_stamps(out, Slide(slide_id, ()), records)
    read: list[str] = []

    def noted(out: UPath, slide: Slide) -> dict[str, FieldRecord]:
        read.append(slide.slide_id)
        return read_stamps(out, slide)

    monkeypatch.setattr("wbc.storage.gone.read_stamps", noted)
    assert shared_pictures(out) == []
    assert read == ["a", "b", "c"]
