"""What was counted, drawn into the fields: a box in its kind's colour round every cell, with its name and score."""

import colorsys
import io
import zlib
from concurrent.futures import Executor, wait

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont
from upath import UPath

from wbc.storage.atomic import write_whole
from wbc.storage.images import read_field
from wbc.storage.layout import Layout
from wbc.storage.tables import arrow_text, read_slide_row, read_table
from wbc.types import Slide

JPEG_QUALITY = 88
SMALLEST_TEXT_PX = 9
# Told apart by eye on a pink and violet ground; the kinds that neighbour in maturity lie far apart.
COLOURS = {
    "rbc": (150, 40, 40),
    "platelet": (120, 90, 0),
    "segmented_neutrophil": (0, 110, 255),
    "band_neutrophil": (0, 160, 160),
    "neutrophil": (0, 80, 170),
    "metamyelocyte": (60, 150, 0),
    "myelocyte": (180, 120, 0),
    "promyelocyte": (0, 100, 60),
    "eosinophil": (230, 60, 0),
    "basophil": (70, 0, 200),
    "lymphocyte": (0, 130, 40),
    "monocyte": (200, 0, 140),
    "erythroblast": (210, 0, 40),
    "unidentified": (20, 20, 20),
}


def annotate_slide(out: UPath, slide: Slide, executor: Executor) -> None:
    """Draw every counted field of a slide from its tables, one future a field.

    All fields are tried; then raises the first one's FieldError or OSError. Raises FileNotFoundError where the slide
    has no committed count.
    """
    failed = {f.field for f in read_slide_row(out, slide.slide_id).failed_fields}
    cells = read_table(out, "cells", slide.slide_id)
    futures = []
    for path in slide.field_paths:
        field = arrow_text(path.name)
        if field not in failed:
            own, target = cells.filter(pc.equal(cells["field"], field)), Layout(out).drawing(slide.slide_id, field)
            futures.append(executor.submit(annotate_field, path, own, target))
    wait(futures)
    for future in futures:
        future.result()


def annotate_field(path: UPath, cells: pa.Table, target: UPath) -> None:
    """Write the field at `path` to the JPEG `target`, its `cells` (rows of the table, x0 … y1 in field px) drawn in.

    The score is the classifier's where it ran, else the detector's. The file is there whole or not at all. Raises
    FieldError where the field cannot be read, OSError where the drawing cannot be written.
    """
    picture = Image.fromarray(read_field(path))
    draw = ImageDraw.Draw(picture)
    side_px = max(picture.size)
    # Nucleated cells last, so that no red cell's box runs through their names.
    for cell in sorted(cells.to_pylist(), key=lambda cell: cell["type_score"] is not None):
        kind, score, is_named = cell["cell_type"], cell["score"], cell["type_score"] is not None
        label = f"{kind} {cell['type_score'] if is_named else score:.2f}".replace("_", " ")
        text_px = (side_px / 140, side_px / 110) if is_named else (SMALLEST_TEXT_PX, side_px / 180)
        box = (cell["x0"], cell["y0"], cell["x1"], cell["y1"])
        _draw_cell(draw, box, label, _colour(kind), max(2, round(side_px / 900)), text_px)
    sink = io.BytesIO()
    # Full colour resolution: thin lines are what the drawing is for.
    picture.save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    write_whole(target, sink.getvalue())


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    label: str,
    colour: tuple[int, int, int],
    line_px: int,
    text_px: tuple[float, float],
) -> None:
    """A box, and its label on a ground of the same colour above it, or inside where the field ends.

    The label is as wide as the box, as far as its size allows (`text_px`, from and to): those of crowded cells do not
    run into each other then.
    """
    x0, y0, x1, y1 = box
    draw.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colour, width=line_px)
    smallest, largest = (max(SMALLEST_TEXT_PX, size) for size in text_px)
    fitting = largest * (x1 - x0) / draw.textlength(label, ImageFont.load_default(largest))
    font = ImageFont.load_default(min(largest, max(smallest, fitting)))
    left, top, right, bottom = draw.textbbox((0, 0), label, font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0.0, min(x0, draw.im.size[0] - width))
    y = y0 - height if y0 >= height else y0
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), label, "white", font)


def _colour(cell_type: str) -> tuple[int, int, int]:
    """A kind's colour, the same in every run: a laboratory's own kinds get a hue of their name."""
    if cell_type in COLOURS:
        return COLOURS[cell_type]
    r, g, b = colorsys.hsv_to_rgb(zlib.crc32(cell_type.encode()) % 360 / 360, 1.0, 0.7)
    return round(255 * r), round(255 * g), round(255 * b)
