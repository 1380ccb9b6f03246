"""Folders become slides, files become pixels, and what is wrong with either is said by name."""

import os
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from wbc.storage.images import read_field
from wbc.storage.names import address, safe_name
from wbc.storage.slides import discover, fields_added, is_gone, survey
from wbc.storage.stamps import stamp
from wbc.types import FieldError, Slide

H, W = 40, 60


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    if request.param == "local":
        yield UPath(tmp_path / "slides")
        return
    folder = UPath(f"memory://{uuid4().hex}/slides")
    yield folder
    if folder.exists():
        folder.fs.rm(folder.parent.path, recursive=True)


def smear() -> NDArray[np.uint8]:
    """A smooth picture without symmetry, so that every turn and flip of it is another."""
    y, x = np.mgrid[:H, :W]
    return np.stack([40 + 3 * y, 250 - 2 * x, 100 + y + x], axis=-1).astype(np.uint8)


def encoded(picture: Image.Image, fmt: str, **options: object) -> bytes:
    sink = BytesIO()
    picture.save(sink, fmt, **options)
    return sink.getvalue()


JPEG = encoded(Image.fromarray(smear()), "JPEG", quality=95)


def put(path: UPath, content: bytes = JPEG) -> UPath:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(root: UPath) -> dict[str, list[str]]:
    return {slide.slide_id: [path.name for path in slide.field_paths] for slide in discover(root)}


def passed_over(root: UPath) -> list[tuple[str, str, str]]:
    return [(passed.path, passed.kind, passed.why) for passed in survey(root).passed_over]


# Folders


def test_every_folder_that_holds_images_is_a_slide(root: UPath) -> None:
    for name in ("s1/b.JPG", "s1/a.tiff", "s1/notes.json", "s1/.hidden.jpg", "night/s2/x.bmp", ".trash/y.png"):
        put(root / name)
    assert found(root) == {"s1": ["a.tiff", "b.JPG"], "night%2Fs2": ["x.bmp"]}


def test_same_stem_with_another_suffix_is_another_field(root: UPath) -> None:
    put(root / "s" / "a.jpg")
    put(root / "s" / "a.png")
    assert found(root) == {"s": ["a.jpg", "a.png"]}


def test_folder_without_images_is_reported_as_a_slide_without_fields(root: UPath) -> None:
    put(root / "s1" / "a.jpg")
    put(root / "empty" / "notes.txt")
    assert found(root) == {"empty": [], "s1": ["a.jpg"]}


def test_images_in_root_take_its_name_whatever_else_comes(root: UPath) -> None:
    put(root / "a.jpg")
    assert found(root) == {"slides": ["a.jpg"]}
    put(root / "s1" / "b.jpg")
    assert found(root) == {"slides": ["a.jpg"], "s1": ["b.jpg"]}


def test_images_in_root_beside_a_folder_of_its_name(root: UPath) -> None:
    put(root / "a.jpg")
    put(root / "slides" / "b.jpg")
    assert found(root) == {"%2E": ["a.jpg"], "slides": ["b.jpg"]}


def test_odd_names_are_found_and_read(root: UPath) -> None:
    folders = ["with space", "a..b", "new\nline", "Probe №5 größe", "血液", "100%", "a:b", "[x]*", "_first"]
    for folder in folders:
        put(root / folder / "f 1\n..é.jpg")
    slides = discover(root)
    assert [slide.slide_id for slide in slides] == sorted(safe_name(folder) for folder in folders)
    assert all(read_field(slide.field_paths[0]).shape == (H, W, 3) for slide in slides)


def test_name_that_is_no_utf8_is_found_and_read(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/s\xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder + b"/a\xfe.jpg")).write_bytes(JPEG)
    Path(os.fsdecode(folder + b"/b\xfe.webp")).write_bytes(b"")
    (slide,) = discover(UPath(tmp_path))
    assert slide.slide_id.isascii()
    assert passed_over(UPath(tmp_path)) == [("s\\udcff/b\\udcfe.webp", "unread_picture", "")]
    assert slide.source is not None
    assert slide.source.isascii()
    assert not is_gone(slide.source)
    assert read_field(slide.field_paths[0]).shape == (H, W, 3)


def test_folder_of_results_is_no_slide(root: UPath) -> None:
    put(root / "s1" / "a.jpg")
    put(root / "out" / ".wbc" / "s1.json")
    put(root / "out" / "annotated" / "s1" / "a.jpg")
    assert found(root) == {"s1": ["a.jpg"]}
    assert passed_over(root) == [("out/", "results", "")]


def test_a_slide_in_whose_folder_a_count_was_put_is_one_all_the_same(root: UPath) -> None:
    put(root / "s1" / "a.jpg")
    for result in (".wbc/s1.json", "slides/s1.parquet", "annotated/s1/a.jpg", "pixels/s1.zarr/zarr.json"):
        put(root / "s1" / result)
    assert found(root) == {"s1": ["a.jpg"]}
    names = ["s1/.wbc/", "s1/annotated/", "s1/pixels/", "s1/slides/"]  # and not s1/, which is counted
    assert passed_over(root) == [(name, "results", "") for name in names]


def test_drawings_in_an_out_above_the_slides_are_no_slides(root: UPath) -> None:
    put(root / ".wbc" / "s1.json")
    put(root / "annotated" / "s1" / "a.jpg")
    put(root / "scans" / "s1" / "a.jpg")
    assert found(root) == {"scans%2Fs1": ["a.jpg"]}
    assert passed_over(root) == [(".wbc/", "results", ""), ("annotated/", "results", "")]
    for inside in ("annotated", "annotated/s1"):
        with pytest.raises(ValueError, match=r"lies among the results of a count in .*slides"):
            discover(root / inside)


def test_whatever_is_passed_over_is_named(root: UPath) -> None:
    for name in ("s1/a.jpg", "s1/b.webp", "s1/c.SVS", "s1/.d.jpg", "s1/notes.txt", ".trash/e.jpg", "f.gif", "list"):
        put(root / name)
    assert found(root) == {"s1": ["a.jpg"]}
    assert passed_over(root) == [
        (".trash/", "hidden", ""),
        ("f.gif", "unread_picture", ""),
        ("list", "other_file", ""),
        ("s1/.d.jpg", "hidden", ""),
        ("s1/b.webp", "unread_picture", ""),
        ("s1/c.SVS", "unread_picture", ""),
        ("s1/notes.txt", "other_file", ""),
    ]


def test_a_folder_without_any_picture_is_refused(root: UPath) -> None:
    put(root / "keep").unlink()
    root.mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match=r"no picture to count in .*slides' or below: it is empty"):
        discover(root)
    for name in ("a.webp", "b.webp", "c.webp", "d.webp", "lost+found/x.txt"):
        put(root / name)
    with pytest.raises(ValueError, match=r"passed over: a\.webp, b\.webp, c\.webp and 2 more"):
        discover(root)


# Addresses


def test_a_slide_has_the_address_of_its_folder(root: UPath) -> None:
    put(root / "s1" / "a.jpg")
    put(root / "b.jpg")
    addresses = {slide.slide_id: slide.source for slide in discover(root)}
    start = os.path.realpath(root.path) if isinstance(root, Path) else str(root)
    assert addresses == {"slides": start, "s1": f"{start}/s1"}


def test_links_lead_to_one_address(tmp_path: Path) -> None:
    put(UPath(tmp_path / "2026-11-25" / "s1" / "a.jpg"))
    (tmp_path / "today").symlink_to(tmp_path / "2026-11-25")
    assert discover(UPath(tmp_path / "today")) != discover(UPath(tmp_path / "2026-11-25"))
    sources = {discover(UPath(str(root)))[0].source for root in (tmp_path / "today", f"file://{tmp_path}/2026-11-25")}
    assert sources == {os.path.realpath(tmp_path / "2026-11-25" / "s1")}


def test_an_address_tells_no_password() -> None:
    assert address(UPath("memory://me:secret@lab/slides/")) == "memory://lab/slides"


def test_a_slide_is_gone_when_its_folder_is_or_is_no_slide_any_more(root: UPath) -> None:
    put(root / "s1" / "a.jpg")
    put(root / "s2" / "b.jpg")
    first = discover(root)[0].source or ""
    assert not is_gone(first)
    put(root / "s1" / "below" / "a.jpg")
    (root / "s1" / "a.jpg").unlink()
    assert is_gone(first)
    root.fs.rm((root / "s1").path, recursive=True)
    assert is_gone(first)


def test_a_slide_on_a_disk_that_is_not_there_is_not_gone(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    assert not is_gone(str(tmp_path / "mnt" / "slides" / "s1"))
    (tmp_path / "mnt" / "another").mkdir()
    assert is_gone(str(tmp_path / "mnt" / "slides" / "s1"))
    assert not is_gone("nosuch://bucket/s1")


def test_missing_root_and_root_that_is_a_file(root: UPath) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such folder of slides.*slides"):
        discover(root)
    with pytest.raises(NotADirectoryError, match="this is a file"):
        discover(put(root / "a.jpg"))


def test_link_loop_ends_and_is_named(tmp_path: Path) -> None:
    put(UPath(tmp_path / "s1" / "a.jpg"))
    (tmp_path / "s1" / "again").symlink_to(tmp_path)
    (tmp_path / "s1" / "itself").symlink_to("itself")
    assert found(UPath(tmp_path)) == {"s1": ["a.jpg"]}
    assert passed_over(UPath(tmp_path)) == [
        ("s1/again/", "linked_again", f"is {os.path.realpath(tmp_path)}"),
        ("s1/itself", "other_file", ""),
    ]


def test_links_are_followed_and_a_linked_folder_is_one_slide(tmp_path: Path) -> None:
    put(UPath(tmp_path / "archive" / "s7" / "a.jpg"))
    root = tmp_path / "slides"
    put(UPath(root / "s1" / "a.jpg"))
    (root / "from-archive").symlink_to(tmp_path / "archive" / "s7")
    (root / "latest").symlink_to(root / "s1")
    assert found(UPath(root)) == {"from-archive": ["a.jpg"], "s1": ["a.jpg"]}


def test_folder_that_cannot_be_read_is_a_slide_without_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(UPath(tmp_path / "s1" / "a.jpg"))
    put(UPath(tmp_path / "locked" / "a.jpg"))
    scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert found(UPath(tmp_path)) == {"locked": [], "s1": ["a.jpg"]}
    assert passed_over(UPath(tmp_path)) == [("locked/", "unreadable_folder", "Permission denied")]
    with pytest.raises(PermissionError):
        discover(UPath(tmp_path / "locked"))


# Names

paths = st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1), min_size=1).map("/".join)
twins = st.text("aA~%/. _é2FE\n", min_size=1, max_size=6)


@given(paths)
@example("." * 300)
@example("é" * 200)
@example("_x")
def test_safe_name_is_a_file_name_that_readers_see(path: str) -> None:
    name = safe_name(path)
    assert name[0] not in "._ "
    assert name[-1] not in ". "
    assert "/" not in name
    assert name.isprintable()
    assert len(name.encode()) <= 180


@given(paths)
def test_safe_name_tells_its_path_unless_it_was_cut(path: str) -> None:
    name = safe_name(path)
    assert "~" in name or unquote(name, errors="surrogatepass") == path


@given(twins, twins, st.integers(0, 200))
def test_two_paths_never_share_a_name(one: str, other: str, length: int) -> None:
    common = "x" * length
    assert (safe_name(common + one) == safe_name(common + other)) == (one == other)
    assert (safe_name(one + common) == safe_name(other + common)) == (one == other)


def test_a_cut_name_does_not_meet_a_folder_that_has_it_as_its_name() -> None:
    cut = safe_name("x" * 300)
    assert "~" in cut
    assert safe_name(cut) != cut


# Files


def test_link_that_leads_nowhere_and_pipe_are_fields_that_fail(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (slide,) = discover(UPath(tmp_path))
    gone, pipe = slide.field_paths
    with pytest.raises(FieldError, match="No such file"):
        read_field(gone)
    with pytest.raises(FieldError, match="is not a regular file"):
        read_field(pipe)


def test_stamp_changes_with_the_file_and_only_then(root: UPath) -> None:
    path = put(root / "a.jpg")
    before = stamp(path)
    assert (before.name, before.size) == ("a.jpg", len(JPEG))
    assert before.modified
    read_field(path)
    assert stamp(path) == before
    put(path, JPEG[::-1])
    if isinstance(path, Path):
        os.utime(path, ns=(0, int(before.modified) + 1))
    assert stamp(path) != before


def test_stamp_of_a_missing_field(root: UPath) -> None:
    with pytest.raises(FieldError, match=r"a\.jpg: cannot be read"):
        stamp(root / "a.jpg")


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_fields_that_came_since_the_survey_are_told(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    root = (UPath(tmp_path) if place == "disk" else request.getfixturevalue("bucket")) / "late"
    for name in ("s1/a.png", "s1/b.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    (slide,) = discover(root)
    assert fields_added(slide) == ()
    for name in ("s1/a2.png", "s1/.hidden.png", "s1/notes.txt"):
        (root / name).write_bytes(b"x")
    (root / "s1/b.png").unlink()
    assert fields_added(slide) == ("a2.png",)
    assert fields_added(replace(slide, field_paths=slide.field_paths[:1])) == ()
    root.rename(root.parent / "gone") if place == "disk" else root.rmdir(recursive=True)
    assert fields_added(slide) == ()
    assert fields_added(Slide("empty", ())) == ()
