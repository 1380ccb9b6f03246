"""Files are there whole or not at all, and what a killed process left half-written can be swept."""

import errno
import os
from pathlib import Path

import pytest
from upath import UPath

from wbc.storage.atomic import remove_folder, remove_temporaries, staged, write_temporary, write_whole


def names(folder: UPath) -> set[str]:
    """Every file below a folder, by its path there."""
    return {p.path.removeprefix(folder.path).lstrip("/") for p in folder.rglob("*") if p.is_file()}


def test_a_file_is_written_and_replaced(out: UPath) -> None:
    path = out / "deep" / "a.txt"
    for content in (b"first", b"", b"second"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert names(out) == {"deep/a.txt"}


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = UPath(tmp_path)
    write_whole(out / "a.txt", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.txt"):
        write_temporary(out / "a.txt", b"new", durable=True)
    assert (out / "a.txt").read_bytes() == b"old"
    assert names(out) == {"a.txt"}


def test_a_file_that_cannot_take_its_place_leaves_nothing(tmp_path: Path) -> None:
    out = UPath(tmp_path)
    (out / "a.txt" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a\.txt"):
        write_whole(out / "a.txt", b"new")
    assert names(out) == set()


def test_what_is_half_written_is_swept_at_any_depth_and_nothing_else(out: UPath) -> None:
    kept = {"a.parquet", "b.tmp", ".c", "deep/.d.json"}
    for name in kept | {".a.parquet.0123.tmp", "deep/er/.x.jpg.89ab.tmp"}:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    left = write_temporary(out / "deep" / "e.jpg", b"whole, and never given its place", durable=False)
    assert left.exists()
    remove_temporaries(out)
    assert names(out) == kept


def test_a_removed_folder_is_gone_and_removing_nothing_is_no_error(out: UPath) -> None:
    write_whole(out / "deep" / "a.txt", b"x")
    for _ in range(2):
        remove_folder(out)
        assert not out.exists()


def test_files_that_are_staged_take_their_places_together_or_not_at_all(out: UPath) -> None:
    write_whole(out / "a.txt", b"old")
    new = {out / "a.txt": b"new", out / "b.txt": b"new"}
    with pytest.raises(RuntimeError, match="between"), staged(new, durable=True):
        raise RuntimeError("between writing and renaming")
    assert names(out) == {"a.txt"}
    with staged(new, durable=True):
        assert (out / "a.txt").read_bytes() == b"old"
    assert [path.read_bytes() for path in new] == [b"new", b"new"]
    assert names(out) == {"a.txt", "b.txt"}


def test_sweeping_a_folder_that_does_not_exist(out: UPath) -> None:
    remove_temporaries(out)
    assert not out.exists()
