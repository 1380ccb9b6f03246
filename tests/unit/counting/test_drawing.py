"""Drawn cells are where they were counted, can be told apart and found in the table; no label hides another."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wbc.counting import drawing
from wbc.counting.drawing import COLOURS, Box, colour_of, draw_cells

GROUND = (240, 220, 230)


def cell(cell_type: str, box: Box, cell_id: int = 0, type_score: float | None = 0.8) -> dict[str, Any]:
    """A row of the table `cells`, as far as it is drawn."""
    x0, y0, x1, y1 = box
    scores = {"score": 0.9, "type_score": type_score}
    return {"cell_id": cell_id, "cell_type": cell_type, "x0": x0, "y0": y0, "x1": x1, "y1": y1} | scores


def drawn(
    *white: dict[str, Any], others: tuple[dict[str, Any], ...] = (), size: tuple[int, int] = (640, 480)
) -> NDArray[np.int16]:
    """The pixels of a picture of one colour with these cells in it."""
    picture = Image.new("RGB", size, GROUND)
    draw_cells(picture, white, others)
    return np.array(picture, np.int16)


def near(pixels: NDArray[np.int16], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.abs(pixels - np.array(colour, np.int16)).max(-1) < 30


def texts(
    monkeypatch: pytest.MonkeyPatch, *white: dict[str, Any], others: tuple[dict[str, Any], ...] = ()
) -> list[str]:
    """What is written into a picture with these cells."""
    written: list[str] = []
    text = ImageDraw.ImageDraw.text
    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **k: (written.append(a[2]), text(*a, **k))[1])
        drawn(*white, others=others)
    return written


def test_a_white_cell_is_framed_where_it_is_with_its_name_above() -> None:
    pixels, colour = drawn(cell("segmented_neutrophil", (100, 200, 260, 340))), COLOURS["segmented_neutrophil"]
    marked = near(pixels, colour)
    assert marked[200:341, 100].all()
    assert marked[200:341, 260].all()
    assert marked[340, 100:261].all()
    above = marked[180:199, 100:260]
    assert above.mean() > 0.2, "no ground for the name"
    assert near(pixels[180:199, 100:260], (255, 255, 255)).any(), "no name on it"
    inside = near(pixels, GROUND)
    assert inside[210:330, 110:250].all(), "the cell itself is painted over"
    assert inside[400:].all(), "something is drawn far from the cell"


def test_a_label_names_cell_type_and_score_and_the_row_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    named, unnamed = cell("band_neutrophil", (50, 60, 150, 160), 7), cell("unidentified", (300, 60, 400, 160), 8, None)
    assert texts(monkeypatch, named, unnamed) == ["7  band neutrophil 0.80", "8  unidentified 0.90"]


def test_other_cells_have_thin_frames_and_their_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    others = (cell("rbc", (100, 100, 180, 180), 12, None), cell("platelet", (300, 100, 330, 130), 13, None))
    assert texts(monkeypatch, others=others) == ["12", "13"]
    marked = near(drawn(others=others), COLOURS["rbc"])
    assert marked[100:181, 100].all()
    assert not marked[140:180, 101].any(), "one pixel wide in a picture of this size"
    assert near(drawn(others=others), GROUND)[:99].all(), "nothing is written above the frame"


def test_a_label_is_legible_at_the_usual_size() -> None:
    picture = drawn(cell("lymphocyte", (1000, 1000, 1160, 1160)), size=(2560, 1920))
    assert (near(picture[900:998, 1000:1160], COLOURS["lymphocyte"]).mean(1) > 0.3).sum() >= 18


def test_types_differ_in_colour_and_every_type_has_one() -> None:
    types = [*COLOURS, "hairy_cell", "smudge"]
    for one, other in itertools.combinations(types, 2):
        assert max(abs(a - b) for a, b in zip(colour_of(one), colour_of(other), strict=True)) >= 30, (one, other)
    for cell_type in types:
        # WCAG 2.1, 1.4.3: the contrast of large text with its ground is at least 3.
        r, g, b = ((c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in colour_of(cell_type))
        assert 1.05 / (0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05) >= 3, cell_type


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (600, 450, 640, 480), (-5, -5, 700, 500), (10, 10, 10, 10)])
def test_cells_at_the_edge_are_drawn_within_the_field(box: Box) -> None:
    assert near(drawn(cell("basophil", box)), COLOURS["basophil"]).sum() > 100
    assert drawn(others=(cell("rbc", box),)).shape == (480, 640, 3)


def test_a_field_without_cells_stays_as_it_was() -> None:
    assert (drawn() == GROUND).all()


CROWD = st.integers(1, 25).flatmap(lambda n: st.just([(0, 0)] * n)) | st.lists(
    st.tuples(st.integers(0, 1100), st.integers(0, 800)), min_size=1, max_size=25
)


@given(CROWD)
def test_no_label_hides_another_in_a_crowd(corners: list[tuple[int, int]]) -> None:
    boxes = [(float(x), float(y), x + 90.0, y + 90.0) for x, y in corners]
    places = labels_of(boxes, (1280, 960))
    for (x0, y0, x1, y1), (u0, v0, u1, v1) in itertools.combinations(places, 2):
        assert x1 <= u0 or u1 <= x0 or y1 <= v0 or v1 <= y0
    assert all(x0 >= 0 and y0 >= 0 and x1 < 1280 and y1 < 960 for x0, y0, x1, y1 in places)


def test_a_label_moves_aside_rather_than_over_another_cell() -> None:
    upper, lower = (300.0, 100.0, 400.0, 200.0), (300.0, 205.0, 400.0, 305.0)
    above, below = labels_of([upper, lower], (1280, 960))
    assert above[3] <= upper[1]
    assert below[1] >= lower[3]


def labels_of(boxes: list[Box], size: tuple[int, int]) -> list[Box]:
    """Where the labels of cells at these boxes go, from the top down."""
    placed: list[Box] = []
    labels = drawing._Labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "_Labels", lambda draw, font, around: labels(draw, font, around, placed))
        drawn(*(cell("segmented_neutrophil", box, i) for i, box in enumerate(boxes)), size=size)
    return placed
