"""OUT is refused where it cannot take the results or would mix them with the slides, and swept of what a kill left."""

import errno
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from wbc.storage import atomic
from wbc.storage.layout import Layout

# OUT as seen from SLIDES.
AMONG = (".", "out", "night 2/out", "annotated")
APART = ("../out", "../slides-out", "../../elsewhere")


@pytest.fixture(params=["local", "file", "memory"])
def slides(request: pytest.FixtureRequest, tmp_path: Path) -> UPath:
    """A folder of slides: a local path, a local address, in memory."""
    roots = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory://{uuid4().hex}"}
    return UPath(roots[request.param]) / "lab" / "slides"


def seen_from(slides: UPath, place: str) -> UPath:
    found = slides
    for part in place.split("/"):
        found = {".": found, "..": found.parent}.get(part, found / part)
    return found


@pytest.mark.parametrize("place", AMONG)
def test_an_out_among_the_slides_is_refused(slides: UPath, place: str) -> None:
    out = seen_from(slides, place)
    with pytest.raises(ValueError, match=r"lies in SLIDES.*would count its results") as refused:
        Layout(out).check_apart(slides)
    assert str(out) in str(refused.value)
    assert str(slides) in str(refused.value)


@pytest.mark.parametrize("place", APART)
def test_an_out_elsewhere_is_accepted(slides: UPath, place: str) -> None:
    Layout(seen_from(slides, place)).check_apart(slides)


def test_slides_below_out_are_accepted_where_no_results_go(slides: UPath) -> None:
    Layout(slides.parent).check_apart(slides.parent / "scans")
    with pytest.raises(ValueError, match="lies where the results"):
        Layout(slides.parent).check_apart(slides)
    with pytest.raises(ValueError, match="lies where the results"):
        Layout(slides.parent).check_apart(slides.parent / "annotated" / "s1")


def test_the_same_path_on_another_file_system_is_another_place() -> None:
    Layout(UPath("memory://lab/slides/out")).check_apart(UPath("/lab/slides"))
    Layout(UPath("/lab/slides/out")).check_apart(UPath("memory://lab/slides"))


def test_a_local_folder_is_known_by_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "slides")
    monkeypatch.chdir(tmp_path)
    for out in ("link/out", "slides/../slides", "./slides/", f"file://{tmp_path}/slides/out"):
        with pytest.raises(ValueError, match="lies in SLIDES"):
            Layout(UPath(out)).check_apart(UPath("slides"))
    (tmp_path / "slides" / "out").symlink_to(tmp_path)
    Layout(UPath("slides/out/results")).check_apart(UPath("slides"))


def test_out_is_made_and_left_clean(out: UPath) -> None:
    Layout(out).check_writable()
    assert out.is_dir()
    assert not [path for path in out.rglob("*") if path.is_file()]
    Layout(out).check_writable()


def test_out_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"results cannot be written here: Not a directory.*/file/out/cells"):
        Layout(UPath(tmp_path / "file" / "out")).check_writable()


def test_out_without_leave_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = UPath(tmp_path / "out")
    out.mkdir()
    out.chmod(0o500)
    if os.geteuid() == 0:

        def refuse(path: Any, *_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"results cannot be written here: Permission denied.*out/cells"):
        Layout(out).check_writable()


def test_temporaries_are_swept_wherever_a_count_writes_and_a_users_files_stay(out: UPath) -> None:
    folders = ("cells", "differentials", "slides", ".wbc", "history/c1/cells", "annotated/s1")
    mine = {out / folder / "note.txt" for folder in (*folders, "mine")} | {out / "mine" / ".draft.tmp"}
    half = {out / folder / ".s1.0123.tmp" for folder in folders}
    for path in mine | half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    Layout(out).sweep()
    assert {path.path for path in out.rglob("*") if path.is_file()} == {path.path for path in mine}


def test_what_cannot_be_swept_is_logged_and_the_rest_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    half = tmp_path / "cells" / ".s1.parquet.0123abcd.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half")

    def busy(folder: UPath) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", folder.path)

    monkeypatch.setattr(atomic, "remove_folder", busy)
    Layout(UPath(tmp_path)).sweep()
    assert not half.exists()
    assert "Device or resource busy" in caplog.text


NAMES = st.lists(st.text("abAB.", min_size=1, max_size=6), max_size=6, unique=True)


@given(NAMES)
def test_no_two_fields_of_a_slide_meet_in_one_drawing(names: list[str]) -> None:
    drawings = Layout(UPath("memory://out")).drawings("s1", names)
    assert list(drawings) == names
    assert len({path.name for path in drawings.values()}) == len(names)
    assert {path.parent for path in drawings.values()} <= {UPath("memory://out/annotated/s1")}


@pytest.mark.parametrize(
    ("fields", "drawings"),
    [
        (["f1.jpg", "f2.png"], ["f1.jpg", "f2.jpg"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg.jpg", "a.png.jpg", "b.jpg"]),
        (["a.jpg", "A.png"], ["a.jpg.jpg", "A.png.jpg"]),
        (["a.png", "a.png.jpg"], ["a.jpg", "a.png.jpg.jpg"]),
        ([".jpg", "a"], [".jpg.jpg", "a.jpg"]),
    ],
)
def test_a_drawing_is_named_as_its_field(fields: list[str], drawings: list[str]) -> None:
    paths = Layout(UPath("memory://out")).drawings("s1", fields)
    assert [path.name.lstrip("%._-=~2E") for path in paths.values()] == [name.lstrip(".") for name in drawings]
