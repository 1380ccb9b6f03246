"""OUT is refused where it cannot take the results or would mix them with the slides, and swept of what a kill left."""

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from upath import UPath

from wbc.storage.results import check_apart, check_writable, remove_temporaries

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
        check_apart(slides, out)
    assert str(out) in str(refused.value)
    assert str(slides) in str(refused.value)


@pytest.mark.parametrize("place", APART)
def test_an_out_elsewhere_is_accepted(slides: UPath, place: str) -> None:
    check_apart(slides, seen_from(slides, place))


def test_slides_below_out_are_accepted_where_no_results_go(slides: UPath) -> None:
    check_apart(slides.parent / "scans", slides.parent)
    with pytest.raises(ValueError, match="lies where the results"):
        check_apart(slides, slides.parent)
    with pytest.raises(ValueError, match="lies where the results"):
        check_apart(slides.parent / "annotated" / "s1", slides.parent)


def test_the_same_path_on_another_file_system_is_another_place() -> None:
    check_apart(UPath("/lab/slides"), UPath("memory://lab/slides/out"))
    check_apart(UPath("memory://lab/slides"), UPath("/lab/slides/out"))


def test_a_local_folder_is_known_by_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "slides")
    monkeypatch.chdir(tmp_path)
    for out in ("link/out", "slides/../slides", "./slides/", f"file://{tmp_path}/slides/out"):
        with pytest.raises(ValueError, match="lies in SLIDES"):
            check_apart(UPath("slides"), UPath(out))
    (tmp_path / "slides" / "out").symlink_to(tmp_path)
    check_apart(UPath("slides"), UPath("slides/out/results"))


def test_out_is_made_and_left_clean(out: UPath) -> None:
    check_writable(out)
    assert out.is_dir()
    assert not [path for path in out.rglob("*") if path.is_file()]
    check_writable(out)


def test_out_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"results cannot be written here: Not a directory.*/file/out/cells"):
        check_writable(UPath(tmp_path / "file" / "out"))


def test_out_without_leave_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = UPath(tmp_path / "out")
    out.mkdir()
    out.chmod(0o500)
    if os.geteuid() == 0:

        def refuse(path: Any, *_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"results cannot be written here: Permission denied.*out/cells"):
        check_writable(out)


def test_temporaries_are_swept_wherever_a_count_writes_and_a_users_files_stay(out: UPath) -> None:
    folders = ("cells", "differentials", "slides", ".wbc", "history/c1/cells", "annotated/s1")
    mine = {out / folder / "note.txt" for folder in (*folders, "mine")} | {out / "mine" / ".draft.tmp"}
    half = {out / folder / ".s1.0123.tmp" for folder in folders}
    for path in mine | half:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    remove_temporaries(out)
    assert {path.path for path in out.rglob("*") if path.is_file()} == {path.path for path in mine}
