"""Annotated fields: every counted field has one, under a name of its own, and none is left half-written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from counted import called, count_tables
from PIL import Image
from upath import UPath

from wbc.counting.annotate import Cells, annotate_slide, is_drawn
from wbc.counting.drawing import COLOURS
from wbc.differential import differential_of
from wbc.storage import tables
from wbc.storage.categorical import Categorical
from wbc.storage.counts import commit
from wbc.storage.images import read_field
from wbc.storage.layout import Layout
from wbc.storage.tables import FailedField, Seconds, SlideRow, cells_table
from wbc.taxonomy import Taxonomy, load_taxonomy
from wbc.types import FieldError, Slide

GROUND = (240, 220, 230)
BOXES = {"eosinophil": (100, 100, 180, 180), "erythroblast": (300, 100, 380, 180), "rbc": (100, 300, 180, 380)}


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    if request.param == "local":
        yield UPath(tmp_path)
        return
    root = UPath(f"memory://{uuid4().hex}")
    yield root
    if root.exists():
        root.fs.rm(root.path, recursive=True)


def paint(path: UPath) -> UPath:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.new("RGB", (640, 480), GROUND).save(file, "PNG")
    return path


def shows(drawing: UPath, cell_type: str) -> bool:
    """Whether a drawing has a frame of a cell type's colour at the left edge of `BOXES` of that type."""
    x0, y0, _, y1 = BOXES[cell_type]
    edge = read_field(drawing).astype(np.int16)[y0:y1, x0]
    # JPEG keeps a colour roughly.
    return float((np.abs(edge - np.array(COLOURS[cell_type], np.int16)).max(-1) < 60).mean()) > 0.8


def counted(
    out: UPath, names: list[str], failed: tuple[str, ...], folder: UPath, taxonomy: Taxonomy | None = None
) -> Slide:
    """A slide with the cells of `BOXES` in every field that did not fail, painted, counted and committed."""
    slide = Slide("slide-01", tuple(paint(folder / "slide-01" / name) for name in sorted(names)))
    good = [name for name in sorted(names) if name not in failed]
    types, own = [*BOXES] * len(good), taxonomy or load_taxonomy("blood")
    table = cells_table(
        slide.slide_id,
        Categorical.of(name for name in good for _ in BOXES),
        np.tile(np.array([*BOXES.values()], np.float32), (len(good), 1)),
        np.full(len(types), 0.9, np.float32),
        called(types, [0.8, np.nan, np.nan] * len(good)),
    )
    result = differential_of(types, own, len(failed))
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
        taxonomy=own.name,
        wbc_version="0",
        seconds=Seconds(),
    )
    commit(out, count_tables(table, tables.differentials_table(slide.slide_id, result)), row)
    return slide


def annotated(out: UPath, slide: Slide, cells: Cells = "white") -> dict[str, UPath]:
    """A slide's drawings, made anew, by the names of its fields."""
    with ThreadPoolExecutor(2) as executor:
        annotate_slide(out, slide, executor, cells)
    return Layout(out).drawings(slide.slide_id, [path.name for path in slide.field_paths])


def test_every_counted_field_of_a_slide_is_drawn(folder: UPath) -> None:
    out = folder / "out"
    slide = counted(out, ["a.jpg.png", "a.png", "größe 1.png", "broken.png", "none.png"], ("broken.png",), folder)
    drawings = annotated(out, slide)
    names = {path.name for path in (out / "annotated" / slide.slide_id).iterdir()}
    assert names == {"a.jpg.jpg", "a.jpg", "größe 1.jpg", "none.jpg"}
    for field, drawing in drawings.items():
        assert field == "broken.png" or shows(drawing, "eosinophil")


def test_white_cells_are_drawn_and_all_where_asked(folder: UPath) -> None:
    slide = counted(folder / "out", ["a.png"], (), folder)
    for cells, expected in (("white", ["eosinophil", "erythroblast"]), ("all", [*BOXES])):
        drawing = annotated(folder / "out", slide, cells)["a.png"]
        assert [cell_type for cell_type in BOXES if shows(drawing, cell_type)] == expected


def test_white_cells_of_a_laboratorys_own_taxonomy_are_those_named_or_in_the_differential(folder: UPath) -> None:
    own = replace(load_taxonomy("blood"), name="our_lab")
    drawing = annotated(folder / "out", counted(folder / "out", ["a.png"], (), folder, own))["a.png"]
    assert shows(drawing, "eosinophil")
    assert not shows(drawing, "rbc")


def test_a_drawing_stands_for_its_cells_of_its_count_alone(folder: UPath) -> None:
    out = folder / "out"
    slide = counted(out, ["a.png", "b.png", "bad.png"], ("bad.png",), folder)
    assert not is_drawn(out, slide)
    drawings = annotated(out, slide)
    assert is_drawn(out, slide)
    assert not is_drawn(out, slide, "all")
    annotated(out, slide, "all")
    assert is_drawn(out, slide, "all")
    assert not is_drawn(out, slide)
    annotated(out, slide)
    drawings["a.png"].unlink()
    assert not is_drawn(out, slide), "one is gone"
    annotated(out, slide)
    counted(out, ["a.png", "b.png", "bad.png"], ("bad.png",), folder)
    assert not is_drawn(out, slide), "the slide was counted again"


def test_drawings_of_fields_that_are_gone_go(folder: UPath) -> None:
    out = folder / "out"
    annotated(out, counted(out, ["a.jpg", "b.png"], (), folder))
    (out / "annotated" / "slide-01" / "notes.txt").write_text("mine")
    annotated(out, counted(out, ["a.jpg", "a.png"], (), folder))
    names = {path.name for path in (out / "annotated" / "slide-01").iterdir()}
    assert names == {"a.jpg.jpg", "a.png.jpg", "notes.txt"}


def test_a_field_name_no_file_system_likes_has_a_drawing_below_its_slide(tmp_path: Path) -> None:
    out = UPath(tmp_path / "out")
    annotated(out, counted(out, ["a\nb.png", "x" * 240 + ".png"], (), UPath(tmp_path)))
    assert len(list((tmp_path / "out" / "annotated" / "slide-01").iterdir())) == 2


def test_what_cannot_be_written_raises_and_leaves_nothing(tmp_path: Path) -> None:
    out = UPath(tmp_path / "out")
    slide = counted(out, ["f.png"], (), UPath(tmp_path))
    target = Layout(out).drawings("slide-01", ["f.png"])["f.png"]
    (target / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"f\.jpg"):
        annotated(out, slide)
    assert [path.name for path in target.parent.iterdir()] == ["f.jpg"]


def test_a_field_that_is_gone_is_named_and_the_others_are_drawn(folder: UPath) -> None:
    out = folder / "out"
    slide = counted(out, ["a.png", "b.png"], (), folder)
    slide.field_paths[0].unlink()
    with pytest.raises(FieldError, match=r"a\.png"):
        annotated(out, slide)
    assert Layout(out).drawings("slide-01", ["a.png", "b.png"])["b.png"].exists()


def test_a_slide_that_was_not_counted_cannot_be_drawn(folder: UPath) -> None:
    slide = Slide("slide-01", (paint(folder / "slide-01" / "a.png"),))
    with pytest.raises(FileNotFoundError):
        annotated(folder / "out", slide)
