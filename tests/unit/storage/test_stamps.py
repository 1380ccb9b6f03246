"""What the last run learnt of a slide's fields holds as long as they have not changed, and never when it is broken."""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from jobs import make_job
from painted import make_slide
from upath import UPath

from wbc.counting.slide import count_slide, is_counted, unchanged
from wbc.storage.slides import discover
from wbc.storage.stamps import FieldRecord, known_digests, read_stamps, stamp, write_stamps
from wbc.types import Slide

BROKEN = [b"", b"\xff", b"[]", b'{"a": 1}', b'{"a": {"size": "x"}}', b'{"a": {"size": 1}}']
SLIDE = Slide("s1", ())


def test_records_come_back(out: UPath) -> None:
    assert read_stamps(out, SLIDE) == {}
    records = {"a\n é.jpg": FieldRecord(12, "1700000000000000000", "ab" * 32), "b\udcff.jpg": FieldRecord(0, "", "")}
    write_stamps(out, SLIDE, records)
    assert read_stamps(out, SLIDE) == records
    assert read_stamps(out, Slide("s2", ())) == {}
    write_stamps(out, SLIDE, {})
    assert read_stamps(out, SLIDE) == {}
    assert [path.name for path in (out / ".wbc").iterdir()] == ["s1.json"]


@pytest.mark.parametrize("content", BROKEN)
def test_broken_records_are_none(out: UPath, content: bytes) -> None:
    write_stamps(out, SLIDE, {"a": FieldRecord(1, "2", "3")})
    (out / ".wbc" / "s1.json").write_bytes(content)
    assert read_stamps(out, SLIDE) == {}


@pytest.fixture
def known(tmp_path: Path) -> tuple[UPath, Slide]:
    """An OUT that knows both fields of a slide."""
    out, fields = UPath(tmp_path / "out"), tuple(UPath(tmp_path / name) for name in ("a.png", "b.png"))
    for path in fields:
        path.write_bytes(path.name.encode())
    slide = Slide("s1", fields)
    stamps = [stamp(path) for path in fields]
    write_stamps(out, slide, {s.name: FieldRecord(s.size, s.modified, f"digest of {s.name}") for s in stamps})
    return out, slide


def test_fields_that_have_not_changed_are_known(known: tuple[UPath, Slide]) -> None:
    out, slide = known
    assert known_digests(out, slide) == {"a.png": "digest of a.png", "b.png": "digest of b.png"}
    assert known_digests(out, Slide("s1", slide.field_paths[:1])) == {"a.png": "digest of a.png"}


def test_a_field_that_changed_or_went_or_could_not_be_read_is_not_known(known: tuple[UPath, Slide]) -> None:
    out, slide = known
    field = slide.field_paths[1]
    status = os.stat(field.path)
    os.utime(field.path, (1, 1))
    assert known_digests(out, slide) is None
    os.utime(field.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known_digests(out, slide) is not None
    records = read_stamps(out, slide)
    write_stamps(out, slide, records | {"b.png": FieldRecord(records["b.png"].size, records["b.png"].modified, "")})
    assert known_digests(out, slide) is None
    write_stamps(out, slide, records)
    field.unlink()
    assert known_digests(out, slide) is None


def remember(out: UPath, slide: Slide) -> None:
    """What a run keeps of a slide's fields."""
    stamps = [stamp(path) for path in slide.field_paths]
    write_stamps(out, slide, {s.name: FieldRecord(s.size, s.modified, f"digest of {s.name}") for s in stamps})


def archive(path: Path, fields: dict[str, bytes]) -> UPath:
    """Pictures as a zip file whose entries all have one time, as reproducible archives have."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in fields.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return UPath(f"zip://::{path}")


def test_size_alone_stands_for_nothing(tmp_path: Path, out: UPath) -> None:
    slides = archive(tmp_path / "slides.zip", {"s1/a.png": b"one"})
    slide = Slide("s1", (slides / "s1" / "a.png",))
    assert stamp(slide.field_paths[0]).modified == ""
    remember(out, slide)
    assert known_digests(out, slide) is None


def test_a_field_in_memory_is_known_until_it_is_written_again(out: UPath) -> None:
    field = UPath(f"memory://{uuid4().hex}/s1/a.png")
    field.write_bytes(b"one")
    slide = Slide("s1", (field,))
    remember(out, slide)
    assert known_digests(out, slide) == {"a.png": "digest of a.png"}
    field.write_bytes(b"two")
    assert known_digests(out, slide) is None


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"ETag": '"v1"', "LastModified": datetime(2026, 11, 25, tzinfo=UTC)}, '"v1"'),
        ({"etag": "CJ=", "generation": "17", "updated": "2026-11-25T00:00:00Z", "mtime": 1.0}, "CJ="),
        ({"ETag": None, "LastModified": datetime(2026, 11, 25, tzinfo=UTC)}, "2026-11-25T00:00:00+00:00"),
        ({"modify": "20261125000000"}, "20261125000000"),
    ],
)
def test_an_object_is_known_by_its_version_before_its_time(
    told: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = UPath(f"memory://{uuid4().hex}/s1/a.png")
    field.write_bytes(b"one")
    known = field.fs.info(field.path) | told
    monkeypatch.setattr(type(field.fs), "info", lambda *_, **__: known)
    assert stamp(field).modified == expected


def test_the_time_of_creation_is_no_time_of_change(monkeypatch: pytest.MonkeyPatch) -> None:
    field = UPath(f"memory://{uuid4().hex}/s1/a.png")
    field.write_bytes(b"one")

    def unknown(*_: Any) -> datetime:
        raise NotImplementedError

    monkeypatch.setattr(type(field.fs), "modified", unknown)
    assert stamp(field).modified == ""


def test_a_slide_in_an_archive_is_counted_again_where_its_content_changed(
    tmp_path: Path,
    out: UPath,
) -> None:
    folders = [make_slide(UPath(tmp_path / name), 1, cells) for name, cells in (("few", 5), ("many", 9))]
    pictures = [(folder / "f000.png").read_bytes() for folder in folders]
    # Padding after its end makes a PNG longer and changes no pixel.
    longest = max(map(len, pictures))
    found = []
    for content in (pictures[0], pictures[1], pictures[1]):
        root = archive(tmp_path / "slides.zip", {"s1/f000.png": content.ljust(longest, b"\0")})
        root.fs.clear_instance_cache()
        (slide,) = discover(UPath(f"zip://::{tmp_path / 'slides.zip'}"))
        job = make_job(out)
        with ThreadPoolExecutor(1) as executor:
            outcome = unchanged(slide, out) if is_counted(slide, job) else count_slide(slide, job, executor)
        found.append((outcome.status, outcome.n_cells))
    assert found == [("counted", 5), ("counted", 9), ("unchanged", 9)]
