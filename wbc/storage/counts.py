"""A slide's count in OUT: committed by one rename, read whole, and known for broken where it is.

A count is five files, `OUT/{cells,differentials,fields,detections,slides}/<slide_id>.parquet`, and its row in `slides`
holds the digests of the others: files that agree with the row are one count, others are a torn one. `commit` goes these
steps, each of which either happened or did not, however the run ends:

1. All new files are written beside their places under names `.….tmp`, which readers of a folder pass over.
   Only here and in step 2 can the disk be full; the old count then still stands whole.
2. Where a count with another `count_id` stands, its files are copied to `OUT/history/<count_id>/`, those of them that
   agree with its row; a copy that exists is written again.
3. The new files take the places of the old ones, `slides` last, each by one renaming: no file is ever missing. The row
   is the commit.

The file of `slides` holds a digest of its own row, by which it is known for broken where other values are read than
were written.

A run that is killed before step 3 leaves the old count, one killed within it a torn count, whose old files are in the
history already. A torn count does not stand: the next run counts the slide again and ends with the same files. Readers
need no lock; in the moment between two renamings `read_count` reads again.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import cast

import pyarrow as pa
from upath import UPath

from wbc.storage import atomic
from wbc.storage.corrections import read_corrections
from wbc.storage.detections import Evidence, evidence_of
from wbc.storage.layout import TABLES, Layout, TableName
from wbc.storage.parquet import from_bytes, to_bytes
from wbc.storage.tables import SCHEMAS, DuplicateField, FailedField, Seconds, SlideRow, slides_table

PATIENCE_SECONDS, PAUSE_SECONDS = 1.0, 0.02
_OTHERS = tuple(name for name in TABLES if name != "slides")
_ROW_DIGEST = b"wbc_row_sha256"  # a key of the metadata in the file of `slides`


@dataclass(frozen=True, slots=True, eq=False)
class StandingCount:
    """What one count of a slide says."""

    row: SlideRow
    cells: pa.Table
    differentials: pa.Table


def commit(out: UPath, tables: Mapping[TableName, pa.Table], row: SlideRow, why: str = "counted anew") -> SlideRow:
    """Make `row`, with its other tables, the count of its slide, in the steps told at this module's top.

    Returns the row with the digests of the others. A count with another `count_id` that stood there goes to the
    history, with `why`; one with the same is replaced. Raises ValueError where a table has another schema, OSError
    where it cannot be written: the old count then stands whole.
    """
    layout = Layout(out)
    files = {name: _parquet(name, tables[name]) for name in _OTHERS}
    digests = {_digest_column(name): _digest(file) for name, file in files.items()}
    row = replace(row, **digests)  # type: ignore[arg-type]
    contents = {layout.table(name, row.slide_id): file for name, file in files.items()}
    contents[layout.table("slides", row.slide_id)] = _parquet("slides", slides_table(row))
    with atomic.staged(contents, durable=True):
        _keep_superseded(layout, row.slide_id, row.count_id, why)
    return row


def change_source(out: UPath, slide_id: str, source: str | None) -> None:
    """Write another address into a slide's row in `slides`: its count stays. For the run that holds OUT.

    Raises FileNotFoundError where the slide has no row, ValueError where it is broken, OSError where OUT is.
    """
    row = replace(read_slide_row(out, slide_id), source=source)
    content = {Layout(out).table("slides", slide_id): _parquet("slides", slides_table(row))}
    with atomic.staged(content, durable=True):
        pass


def retire(out: UPath, slide_id: str) -> None:
    """Move a slide's count to the history: its tables show it no more. For the run that holds OUT.

    The row in `slides` goes last, so that one who is killed meanwhile can go on. A slide that could not be counted has
    no count to keep. Raises OSError.
    """
    layout = Layout(out)
    _keep_superseded(layout, slide_id, None, "taken out of the tables by hand, or as its slide had gone")
    for path in (layout.stamps(slide_id), *(layout.table(name, slide_id) for name in TABLES)):
        path.unlink(missing_ok=True)


def restore(out: UPath, slide_id: str) -> None:
    """Put back from the history what is broken of a slide's count, or is of another one: a commit was killed in step 3.

    Does nothing where the row is broken too, or the history does not hold it all. For the run that holds OUT. Raises
    OSError.
    """
    layout = Layout(out)
    digests = _digests(layout.table("slides", slide_id))
    if digests is None:
        return
    place, contents = layout.history(str(digests["count_id"])), {}
    for name in _OTHERS:
        if not _is_of(layout.table(name, slide_id), digests[_digest_column(name)]):
            if not _is_of(place.table(name, slide_id), digests[_digest_column(name)]):
                return
            contents[layout.table(name, slide_id)] = place.table(name, slide_id).read_bytes()
    with atomic.staged(contents, durable=True):
        pass


def _keep_superseded(layout: Layout, slide_id: str, count_id: str | None, why: str) -> None:
    """Copy to the history what is whole of a slide's count, unless `count_id`, the new one's, is its own too.

    Beside it stand the new count and why.
    """
    slides = layout.table("slides", slide_id)
    digests = _digests(slides)
    if digests is None or digests["count_id"] == count_id:
        return
    place = layout.history(str(digests["count_id"]))
    told = {"replaced_by": count_id, "why": why}
    copies = {place.table("slides", slide_id): slides.read_bytes()}
    copies[place.superseded(slide_id)] = json.dumps(told).encode()
    for name in _OTHERS:
        content = _content(layout.table(name, slide_id))
        if content is not None and digests[_digest_column(name)] in (None, _digest(content)):
            copies[place.table(name, slide_id)] = content
    with atomic.staged(copies, durable=True):
        pass


def committed_count_id(out: UPath, slide_id: str) -> str | None:
    """The `count_id` of the count that stands for a slide.

    None where none does: a file is gone or broken, is not of the same count, or was written before rows held digests.
    """
    layout = Layout(out)
    digests = _digests(layout.table("slides", slide_id))
    if digests is None:
        return None
    is_whole = all(_is_of(layout.table(name, slide_id), digests[_digest_column(name)]) for name in _OTHERS)
    return digests["count_id"] if is_whole else None


def read_source(out: UPath, slide_id: str) -> str | None:
    """The address of a slide's folder as its row has it; None where there is no row, a broken one, or one without.

    Raises OSError where OUT cannot be read.
    """
    try:
        content = Layout(out).table("slides", slide_id).read_bytes()
    except FileNotFoundError:
        return None
    try:
        table = from_bytes(content)
        _check_row(table)
        (source,) = table["source"].to_pylist() if "source" in table.column_names else (None,)
    except (OSError, ValueError, pa.ArrowException):
        return None
    return cast("str | None", source)


def read_count(out: UPath, slide_id: str) -> StandingCount:
    """A slide's count, its files of one commit, also while another process replaces them.

    Rows without digests, of an older version, are taken at their word. Raises FileNotFoundError where the slide has no
    row, ValueError, after a second, where its files are broken or are not of one count.
    """
    row, tables = read_tables(out, slide_id, ("cells", "differentials"))
    return StandingCount(row, tables["cells"], tables["differentials"])


def read_evidence(out: UPath, slide_id: str) -> tuple[SlideRow, Evidence]:
    """A slide's row, and what its count was made from, of one commit as `read_count` has it, with its corrections.

    Raises ValueError too where an older version counted the slide, which kept none.
    """
    if not has_evidence(read_slide_row(out, slide_id)):
        raise ValueError("an older version counted it, which kept no detections")
    row, tables = read_tables(out, slide_id, ("fields", "detections"))
    evidence = evidence_of(slide_id, tables["fields"], tables["detections"])
    return row, replace(evidence, corrections=read_corrections(out, slide_id))


def has_evidence(row: SlideRow) -> bool:
    """Whether what a count was made from was kept beside it: older versions did not."""
    return row.fields_digest is not None and row.detections_digest is not None


def read_tables(out: UPath, slide_id: str, names: Sequence[TableName]) -> tuple[SlideRow, dict[TableName, pa.Table]]:
    """A slide's row and some of its tables, of one commit, as `read_count` has it."""
    last = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return _read_once(out, slide_id, names)
        except ValueError:
            if time.monotonic() > last:
                raise
        time.sleep(PAUSE_SECONDS)


def _read_once(out: UPath, slide_id: str, names: Sequence[TableName]) -> tuple[SlideRow, dict[TableName, pa.Table]]:
    row, tables = read_slide_row(out, slide_id), {}
    for name in names:
        path = Layout(out).table(name, slide_id)
        content, digest = _content(path), getattr(row, _digest_column(name))
        if content is None:
            raise ValueError(f"{str(path)!r} is gone, or cannot be read")
        if digest not in (None, _digest(content)):
            raise ValueError(f"{str(path)!r} is not of the count that the slide's row in slides tells of")
        tables[name] = _table(path, name, content)
    return row, tables


def read_table(out: UPath, table: TableName, slide_id: str) -> pa.Table:
    """One table of a slide. Raises FileNotFoundError where there is none, ValueError where it is broken."""
    path = Layout(out).table(table, slide_id)
    return _table(path, table, path.read_bytes())


def read_slide_row(out: UPath, slide_id: str) -> SlideRow:
    """A slide's row in `slides`. Raises FileNotFoundError where there is none, ValueError where it is broken."""
    table = read_table(out, "slides", slide_id)
    try:
        _check_row(table)
        (row,) = table.drop_columns("counted_at").to_pylist()
        # To make a time with its zone pyarrow imports pandas, which takes longer than all else that is done here.
        (counted_at,) = table["counted_at"].cast(pa.timestamp("us")).to_pylist()
        failed = tuple(FailedField(**field) for field in row["failed_fields"])
        twins = tuple(DuplicateField(**field) for field in row.get("duplicate_fields") or ())
        parts = {"failed_fields": failed, "flags": tuple(row["flags"]), "seconds": Seconds(**row["seconds"])}
        parts |= {"duplicate_fields": twins}
        return SlideRow(**row | parts, counted_at=counted_at.replace(tzinfo=UTC))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{str(Layout(out).table('slides', slide_id))!r} holds no row of slides: {error}") from error


def _digests(slides: UPath) -> dict[str, str | None] | None:
    """The `count_id` and the digests in the row at `slides`, None for those that it has no column of.

    None where there is no row of a count, or a broken one.
    """
    columns = ["count_id", *map(_digest_column, _OTHERS)]
    try:
        table = from_bytes(slides.read_bytes())
        _check_row(table)
        (row,) = table.select([name for name in columns if name in table.column_names]).to_pylist()
    except (OSError, ValueError, pa.ArrowException):
        return None
    is_count = str(row.get("count_id") or "").isalnum()  # a slide that failed may have none
    return {name: row.get(name) for name in columns} if is_count else None


def _is_of(path: UPath, digest: str | None) -> bool:
    """Whether a file can be read and has this digest."""
    content = _content(path)
    return content is not None and _digest(content) == digest


def _digest_column(name: TableName) -> str:
    return f"{name}_digest"


def _check_row(slides: pa.Table) -> None:
    """Raises ValueError where a row of `slides` is another than was written; an older version wrote no digest of it."""
    own = pa.schema([column for column in SCHEMAS["slides"] if column.name in slides.column_names])
    kept = (slides.schema.metadata or {}).get(_ROW_DIGEST)
    if not slides.schema.equals(own) or kept not in (None, _row_digest(slides).encode()):
        raise ValueError("its values are not those that were written")


def _row_digest(slides: pa.Table) -> str:
    # A time with its zone would make pyarrow import pandas; JSON has every other value digit by digit.
    time_column = slides.column_names.index("counted_at")
    plain = slides.set_column(time_column, "counted_at", slides["counted_at"].cast(pa.int64()))
    return _digest(json.dumps(plain.to_pylist()).encode())


def _parquet(name: TableName, table: pa.Table) -> bytes:
    if not table.schema.equals(SCHEMAS[name]):
        raise ValueError(f"a table of {name} has columns\n{table.schema}\nand not\n{SCHEMAS[name]}")
    if name == "slides":
        table = table.replace_schema_metadata({_ROW_DIGEST: _row_digest(table)})
    return to_bytes(table)


def _table(path: UPath, name: TableName, content: bytes) -> pa.Table:
    try:
        return from_bytes(content)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{str(path)!r} holds no table of {name}: {error}") from error


def _content(path: UPath) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
