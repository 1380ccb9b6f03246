"""Annotated fields: what was counted, drawn into a slide's fields, a JPEG a field."""

import io
from collections.abc import Collection, Sequence
from concurrent.futures import Executor, wait
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from upath import UPath

from wbc.counting.drawing import Box, draw_cells
from wbc.counting.left_out import left_out_of
from wbc.counting.report import SlideReport, read_report, report_taxonomy
from wbc.storage.atomic import write_whole
from wbc.storage.counts import read_slide_row, read_table
from wbc.storage.images import read_field
from wbc.storage.layout import Layout
from wbc.storage.tables import SlideRow, arrow_text
from wbc.types import Slide

Cells = Literal["white", "all"]

JPEG_QUALITY = 88
HEAD_BYTES = 1024


def annotate_slide(out: UPath, slide: Slide, executor: Executor, cells: Cells = "white") -> None:
    """Draw every counted field of a slide from its tables, one future a field; other drawings of the slide go.

    White (nucleated) cells are drawn with their names, those that count in another field in thin frames, and so are the
    other cells where `cells` is all. All fields are tried; then raises the first one's FieldError or OSError. Raises
    FileNotFoundError where the slide has no count.
    """
    report, table = read_report(out, slide.slide_id), read_table(out, "cells", slide.slide_id)
    is_white, targets = _is_white(table, report), _targets(out, slide, report.row)
    white, others = table.filter(is_white), table.filter(pc.and_(pc.invert(is_white), cells == "all"))
    again = left_out_of(out, report.row)
    comment = _comment(report.row, cells)
    futures = []
    for path in slide.field_paths:
        field = arrow_text(path.name)
        if field in targets:
            own, others_own = (part.filter(pc.equal(part["field"], field)) for part in (white, others))
            futures.append(
                executor.submit(annotate_field, path, targets[field], own, others_own, again.get(field, ()), comment)
            )
    wait(futures)
    for future in futures:
        future.result()
    _remove_others(Layout(out).drawings_folder(slide.slide_id), targets.values())


def annotate_field(
    path: UPath, target: UPath, white: pa.Table, others: pa.Table, again: Sequence[Box], comment: str
) -> None:
    """Write the field at `path` to the JPEG `target` with rows of `cells` drawn in, `comment` in the file's head.

    `again` are boxes of white cells that count in another field.

    The file is there whole or not at all. Raises FieldError where the field cannot be read, OSError where the drawing
    cannot be written.
    """
    picture = Image.fromarray(read_field(path))
    draw_cells(picture, white.to_pylist(), others.to_pylist(), again)
    sink = io.BytesIO()
    # Full colour resolution: thin lines are what the drawing is for.
    picture.save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0, comment=comment)
    write_whole(target, sink.getvalue())


def is_drawn(out: UPath, slide: Slide, cells: Cells = "white") -> bool:
    """Whether each counted field has a drawing of these cells of the count that stands. Opens drawings, no field."""
    row = read_slide_row(out, slide.slide_id)
    comment = _comment(row, cells).encode()
    return all(comment in _head(target) for target in _targets(out, slide, row).values())


def _targets(out: UPath, slide: Slide, row: SlideRow) -> dict[str, UPath]:
    """The drawings of the fields that were counted, by field."""
    failed = {failed.field for failed in row.failed_fields}
    paths = Layout(out).drawings(slide.slide_id, [arrow_text(name) for name in slide.field_names])
    return {field: path for field, path in paths.items() if field not in failed}


def _is_white(table: pa.Table, report: SlideReport) -> pa.Array:
    """Which rows of `cells` are nucleated cells, as far as the tables tell where the taxonomy is a laboratory's own."""
    taxonomy = report_taxonomy(report)
    if taxonomy:
        nucleated = [cell_type.name for cell_type in taxonomy.cell_types if cell_type.nucleated]
    else:
        nucleated = [row.cell_type for row in report.cell_types if row.in_differential]
    return pc.or_(pc.is_valid(table["type_score"]), pc.is_in(table["cell_type"].cast(pa.string()), pa.array(nucleated)))


def _comment(row: SlideRow, cells: Cells) -> str:
    """What a drawing shows: equal comments, equal drawings."""
    return f"wbc: {cells} cells of count {row.count_id} of {row.counted_at.isoformat()}"


def _head(drawing: UPath) -> bytes:
    """The first bytes of a drawing, where its comment is; none where there is no drawing."""
    try:
        with drawing.open("rb") as file:
            head: bytes = file.read(HEAD_BYTES)
            return head
    except FileNotFoundError:
        return b""


def _remove_others(folder: UPath, drawings: Collection[UPath]) -> None:
    """Remove drawings of fields that are gone, or have another name now."""
    names = {drawing.name for drawing in drawings}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix == ".jpg" and path.name not in names:
            path.unlink(missing_ok=True)
