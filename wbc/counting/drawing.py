"""Cells drawn into a picture: white cells framed and named, others in thin frames, no label upon another."""

import colorsys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in px of the picture
Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SMALLEST_TEXT_PX = 9
# How far above or below its cell a label goes, in heights of a label, rather than over another cell.
NEAR_ROWS = 6
# Told apart by eye on a pink and violet ground; types that neighbour in maturity lie far apart.
COLOURS = {
    "rbc": (150, 40, 40),
    "platelet": (120, 90, 0),
    "segmented_neutrophil": (0, 90, 225),
    "band_neutrophil": (0, 120, 125),
    "neutrophil": (0, 60, 140),
    "metamyelocyte": (50, 125, 0),
    "myelocyte": (150, 95, 0),
    "promyelocyte": (90, 90, 160),
    "immature_granulocyte": (90, 100, 0),
    "eosinophil": (205, 50, 0),
    "basophil": (70, 0, 200),
    "lymphocyte": (0, 120, 35),
    "monocyte": (190, 0, 130),
    "erythroblast": (190, 0, 40),
    "not_a_white_cell": (110, 110, 110),
    "unidentified": (20, 20, 20),
}


def draw_cells(
    picture: Image.Image, white: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], again: Sequence[Box] = ()
) -> None:
    """Draw rows of the table `cells` into an RGB picture, in place: boxes are in its px.

    White cells get a frame and a label: `cell_id`, cell type and the classifier's score, or the detector's where no
    classifier ran. Others get a thin frame with their `cell_id` in its corner; those at `again`, which count in another
    field, one that says so.
    """
    draw, side_px = ImageDraw.Draw(picture), max(picture.size)
    tiny = ImageFont.load_default(max(SMALLEST_TEXT_PX, side_px / 180))
    for cell in others:
        box, colour = _box(cell), colour_of(cell["cell_type"])
        draw.rectangle(box, outline=colour, width=max(1, round(side_px / 1800)))
        draw.text((box[0] + 3, box[1] + 1), str(cell["cell_id"]), colour, tiny)
    for box in again:
        draw.rectangle(box, outline=COLOURS["not_a_white_cell"], width=max(2, round(side_px / 1200)))
        draw.text((box[0] + 3, box[1] + 1), "counted in another field", COLOURS["not_a_white_cell"], tiny)
    for cell in white:
        _frame(draw, _box(cell), colour_of(cell["cell_type"]), max(2, round(side_px / 800)))
    labels = _Labels(draw, ImageFont.load_default(max(SMALLEST_TEXT_PX, side_px / 115)), [_box(cell) for cell in white])
    # From the top down: a label that finds no room above its cell then knows which room is taken.
    for cell in sorted(white, key=lambda cell: (cell["y0"], cell["x0"])):
        labels.put(_label(cell), _box(cell), colour_of(cell["cell_type"]))


def colour_of(cell_type: str) -> Colour:
    """A cell type's colour, the same in every run: a laboratory's own types get a hue of their name."""
    if cell_type in COLOURS:
        return COLOURS[cell_type]
    r, g, b = colorsys.hsv_to_rgb(zlib.crc32(cell_type.encode()) % 360 / 360, 1.0, 0.6)
    return round(255 * r), round(255 * g), round(255 * b)


def _label(cell: dict[str, Any]) -> str:
    score = cell["score"] if cell["type_score"] is None else cell["type_score"]
    return f"{cell['cell_id']}  {cell['cell_type'].replace('_', ' ')} {score:.2f}"


def _box(cell: dict[str, Any]) -> Box:
    x0, y0 = cell["x0"], cell["y0"]
    return x0, y0, max(x0, cell["x1"]), max(y0, cell["y1"])


def _frame(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, line_px: int) -> None:
    """A frame with a fine white line on both sides, so that it stands out from a nucleus of its own colour."""
    x0, y0, x1, y1 = box
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="white", width=line_px + 2)
    draw.rectangle(box, outline=colour, width=line_px)


@dataclass
class _Labels:
    """Puts labels beside cells, clear of each other and, where there is room, of the cells at `boxes`."""

    draw: ImageDraw.ImageDraw
    font: Font
    boxes: list[Box]
    taken: list[Box] = field(default_factory=list)

    def put(self, label: str, box: Box, colour: Colour) -> None:
        left, top, right, bottom = self.draw.textbbox((0, 0), label, self.font)
        width, height = right - left + 6, bottom - top + 6
        near = self._places(box, width, height, range(NEAR_ROWS))
        place = min(near, key=lambda place: (self._hidden(place), _shared_with(place, self.boxes)))
        if self._hidden(place):
            farther = self._places(box, width, height, range(NEAR_ROWS, self.draw.im.size[1] // round(height)))
            place = next((place for place in farther if not self._hidden(place)), place)
        self.taken.append(place)
        self.draw.rectangle(place, fill=colour)
        self.draw.text((place[0] + 3 - left, place[1] + 3 - top), label, "white", self.font)

    def _places(self, box: Box, width: float, height: float, rows: range) -> Iterator[Box]:
        """Where a label may go, best first: above or below its cell, flush left or right, then farther away."""
        x0, y0, x1, y1 = box
        most_x, most_y = (side - 1 - length for side, length in zip(self.draw.im.size, (width, height), strict=True))
        for row in rows:
            for y in (y0 - 2 - (row + 1) * (height + 1), y1 + 3 + row * (height + 1)):
                for x in (x0, x1 - width):
                    left, top = max(0.0, min(x, most_x)), max(0.0, min(y, most_y))
                    yield left, top, left + width, top + height

    def _hidden(self, place: Box) -> float:
        """How much a label at this place would hide of those that are there, in px²."""
        return _shared_with(place, self.taken)


def _shared_with(place: Box, others: Sequence[Box]) -> float:
    """The area in px² that a place shares with others."""
    return sum(_shared(place, other) for other in others)


def _shared(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
