"""A contact sheet: cells side by side and numbered, for a person to name whom no model's opinion is to lead."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8
CELL_PX, LABEL_PX, GAP_PX = 160, 24, 6
JPEG_QUALITY = 92


def draw_sheet(crops: NDArray[np.uint8]) -> bytes:
    """A JPEG of crops uint8 (N,S,S,3), eight in a row, each with its number from 1 above it."""
    columns, rows = min(COLUMNS, len(crops)), -(-len(crops) // COLUMNS)
    wide, high = CELL_PX + GAP_PX, CELL_PX + LABEL_PX + GAP_PX
    sheet = Image.new("RGB", (columns * wide + GAP_PX, rows * high + GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LABEL_PX - 6)
    for i, crop in enumerate(crops):
        x, y = GAP_PX + i % COLUMNS * wide, GAP_PX + i // COLUMNS * high
        draw.text((x + 2, y), str(i + 1), "black", font)
        sheet.paste(Image.fromarray(crop).resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC), (x, y + LABEL_PX))
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return sink.getvalue()
