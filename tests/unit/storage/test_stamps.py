"""What the last run learnt of a slide's fields holds as long as they have not changed, and never when it is broken."""

import os
from pathlib import Path

import pytest
from upath import UPath

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
