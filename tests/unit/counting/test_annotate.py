"""Drawings show each counted cell where it is, for every field that was counted, and leave nothing half-written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from wbc.counting.annotate import COLOURS, annotate_field, annotate_slide
from wbc.differential import differential_of
from wbc.storage import tables
from wbc.storage.images import read_field
from wbc.storage.layout import Layout
from wbc.storage.tables import FailedField, Seconds, SlideRow, cells_table
from wbc.taxonomy import load_taxonomy
from wbc.types import FieldError, Slide

GROUND = (240, 220, 230)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    if request.param == "local":
        yield UPath(tmp_path)
        return
    root = UPath(f"memory://{uuid4().hex}")
    yield root
    if root.exists():
        root.fs.rm(root.path, recursive=True)


def paint(path: UPath, width: int = 640, height: int = 480) -> UPath:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.new("RGB", (width, height), GROUND).save(file, "PNG")
    return path


def cells(*rows: tuple[str, tuple[float, float, float, float], float, float]) -> pa.Table:
    """Rows of the table `cells` in field f.png: kind, box, detector's and classifier's score."""
    boxes = np.array([box for _, box, _, _ in rows], np.float32).reshape(-1, 4)
    scores, type_scores = (np.array([row[i] for row in rows], np.float32) for i in (2, 3))
    return cells_table("s", ["f.png"] * len(rows), boxes, [r[0] for r in rows], scores, type_scores)


def drawn(target: UPath) -> NDArray[np.int16]:
    return read_field(target).astype(np.int16)


def near(pixels: NDArray[np.int16], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Which pixels have a colour, as far as JPEG keeps it."""
    return np.abs(pixels - np.array(colour, np.int16)).max(-1) < 50


def test_a_cell_is_framed_where_it_is_with_its_name_above(folder: UPath) -> None:
    target = folder / "deep" / "f.jpg"
    annotate_field(paint(folder / "f.png"), cells(("segmented_neutrophil", (100, 200, 260, 340), 0.9, 0.8)), target)
    pixels, colour = drawn(target), COLOURS["segmented_neutrophil"]
    assert pixels.shape == (480, 640, 3)
    marked = near(pixels, colour)
    assert marked[200:340, 100].mean() > 0.9
    assert marked[200:340, 260].mean() > 0.9
    assert marked[340, 100:260].mean() > 0.9
    above = marked[180:200, 100:260]
    assert above.mean() > 0.2, "no ground for the name"
    assert near(pixels[180:200, 100:260], (255, 255, 255)).any(), "no name on it"
    inside = near(pixels, GROUND)
    assert inside[210:330, 110:250].all(), "the cell itself is painted over"
    assert inside[400:].all(), "something is drawn far from the cell"


def test_the_name_and_score_are_legible_at_the_usual_size(folder: UPath) -> None:
    target = folder / "f.jpg"
    box = (1000.0, 1000.0, 1160.0, 1160.0)
    annotate_field(paint(folder / "f.png", 2560, 1920), cells(("lymphocyte", box, 0.9, 0.97)), target)
    rows = near(drawn(target)[900:1000, 1000:1160], COLOURS["lymphocyte"]).mean(1) > 0.3
    assert rows.sum() >= 14


def test_kinds_differ_in_colour_and_every_kind_has_one(folder: UPath) -> None:
    target = folder / "f.jpg"
    boxes = [(50.0, 100.0, 150.0, 200.0), (250.0, 100.0, 350.0, 200.0), (450.0, 100.0, 550.0, 200.0)]
    kinds = ["eosinophil", "lymphocyte", "hairy_cell"]
    annotate_field(
        paint(folder / "f.png"), cells(*((k, b, 0.9, 0.9) for k, b in zip(kinds, boxes, strict=True))), target
    )
    edges = [drawn(target)[150, int(box[0])] for box in boxes]
    assert all(np.abs(e - np.array(GROUND)).max() > 60 for e in edges)
    assert np.abs(edges[0] - edges[1]).max() > 60
    assert np.abs(edges[1] - edges[2]).max() > 60


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (600, 450, 640, 480), (-5, -5, 700, 500), (10, 10, 10, 10)])
def test_cells_at_the_edge_are_drawn_within_the_field(folder: UPath, box: tuple[float, ...]) -> None:
    target = folder / "f.jpg"
    x0, y0, x1, y1 = box
    annotate_field(paint(folder / "f.png"), cells(("basophil", (x0, y0, x1, y1), 0.5, float("nan"))), target)
    pixels = drawn(target)
    assert pixels.shape == (480, 640, 3)
    assert near(pixels, COLOURS["basophil"]).sum() > 100


def test_a_field_without_cells_is_drawn_as_it_is(folder: UPath) -> None:
    annotate_field(paint(folder / "f.png"), cells(), folder / "f.jpg")
    assert near(drawn(folder / "f.jpg"), GROUND).all()


def test_what_cannot_be_written_raises_and_leaves_nothing(tmp_path: Path) -> None:
    field = paint(UPath(tmp_path / "f.png"))
    target = UPath(tmp_path / "drawings" / "f.jpg")
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"f\.jpg"):
        annotate_field(field, cells(), target)
    assert [path.name for path in target.parent.iterdir()] == ["f.jpg"]


def counted(out: UPath, names: list[str], failed: tuple[str, ...], folder: UPath) -> Slide:
    """A slide with one eosinophil in every field that did not fail, painted, counted and committed."""
    slide = Slide("slide-01", tuple(paint(folder / "slide-01" / name) for name in sorted(names)))
    good = [name for name in sorted(names) if name not in failed]
    table = cells_table(
        slide.slide_id,
        good,
        np.tile(np.array([100, 100, 180, 180], np.float32), (len(good), 1)),
        ["eosinophil"] * len(good),
        np.full(len(good), 0.9, np.float32),
        np.full(len(good), 0.8, np.float32),
    )
    result = differential_of(["eosinophil"] * len(good), load_taxonomy("blood"), len(failed))
    row = SlideRow(
        slide_id=slide.slide_id,
        count_id="c0",
        counted_at=datetime.now(UTC),
        n_fields=len(names),
        n_fields_failed=len(failed),
        failed_fields=tuple(FailedField(name, "is empty") for name in failed),
        n_cells=result.n_cells,
        n_differential=result.n_differential,
        n_unidentified=0,
        um_per_px=0.1,
        scale_from="given",
        me_ratio=None,
        me_low=None,
        me_high=None,
        nrbc_per_100_wbc=None,
        flags=result.flags,
        detector="d",
        classifier=None,
        taxonomy="blood",
        wbc_version="0",
        seconds=Seconds(),
    )
    tables.commit(out, table, tables.differentials_table(slide.slide_id, result), row)
    return slide


def test_every_counted_field_of_a_slide_is_drawn(folder: UPath) -> None:
    out = folder / "out"
    names = ["a.jpg.png", "a.png", "größe 1.png", "broken.png", "none.png"]
    slide = counted(out, names, ("broken.png",), folder)
    with ThreadPoolExecutor(2) as executor:
        annotate_slide(out, slide, executor)
    found = {path.name for path in (out / "annotated" / slide.slide_id).iterdir()}
    assert found == {"a.jpg.png.jpg", "a.png.jpg", "größe 1.png.jpg", "none.png.jpg"}
    for name in names:
        if name != "broken.png":
            pixels = drawn(Layout(out).drawing(slide.slide_id, name))
            assert near(pixels[100:180, 100], COLOURS["eosinophil"]).mean() > 0.9


def test_a_field_name_no_file_system_likes_has_a_drawing_below_its_slide(tmp_path: Path) -> None:
    out = UPath(tmp_path / "out")
    slide = counted(out, ["a\nb.png", "x" * 240 + ".png"], (), UPath(tmp_path))
    with ThreadPoolExecutor(1) as executor:
        annotate_slide(out, slide, executor)
    assert len(list((tmp_path / "out" / "annotated" / "slide-01").iterdir())) == 2


def test_a_field_that_is_gone_is_named_and_the_others_are_drawn(folder: UPath) -> None:
    out = folder / "out"
    slide = counted(out, ["a.png", "b.png"], (), folder)
    slide.field_paths[0].unlink()
    with ThreadPoolExecutor(1) as executor, pytest.raises(FieldError, match=r"a\.png"):
        annotate_slide(out, slide, executor)
    assert Layout(out).drawing(slide.slide_id, "b.png").exists()


def test_a_slide_that_was_not_counted_cannot_be_drawn(folder: UPath) -> None:
    slide = Slide("slide-01", (paint(folder / "slide-01" / "a.png"),))
    with ThreadPoolExecutor(1) as executor, pytest.raises(FileNotFoundError):
        annotate_slide(folder / "out", slide, executor)
