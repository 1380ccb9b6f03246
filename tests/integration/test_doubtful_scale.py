"""A scale that was told may be wrong, and the count with it: the slide's own red cells say so."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from jobs import make_job
from painted import make_slide
from PIL import Image
from typer.testing import CliRunner
from upath import UPath

from wbc.cells.tiles import TileSettings
from wbc.cli.main import app
from wbc.counting.job import CountSettings
from wbc.counting.slide import count_slide
from wbc.sought import Sought
from wbc.storage.counts import read_slide_row
from wbc.storage.slides import discover
from wbc.storage.tables import SlideRow
from wbc.types import WHOLE_RED_CELL_UM

RIGHT = WHOLE_RED_CELL_UM / 35  # µm per px of the painted cells, 35 px wide


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    return Path(make_slide(UPath(tmp_path / "slides" / "s1"), 3, cells=16).path)


def count(fields: Path, out: UPath, threads: Executor, um_per_px: float | None, sought: Sought = "all") -> SlideRow:
    (slide,) = discover(UPath(fields))
    job = make_job(out, settings=CountSettings(tiles=TileSettings(sought=sought)))
    count_slide(replace(slide, um_per_px=um_per_px), job, threads)
    return read_slide_row(out, "s1")


def tag(path: Path, um_per_px: float) -> None:
    with Image.open(path) as picture:
        picture.save(path.with_suffix(".tif"), resolution=1e4 / um_per_px, resolution_unit="cm")
    path.unlink()


@pytest.mark.parametrize("sought", ["all", "white_and_platelets", "white"])
@pytest.mark.parametrize("factor", [0.2, 0.5, 0.75, 1.35, 2.0, 6.0])
def test_a_scale_at_which_red_cells_are_none_is_doubtful_and_the_right_one_is_told(
    fields: Path, out: UPath, threads: Executor, factor: float, sought: Sought
) -> None:
    row = count(fields, out, threads, RIGHT * factor, sought)
    assert "scale_doubtful" in row.flags
    assert row.red_cell_um == pytest.approx(WHOLE_RED_CELL_UM * factor, rel=0.15)  # discs are few pixels there
    assert (row.um_per_px, row.scale_from) == (pytest.approx(RIGHT * factor), "given")


@pytest.mark.parametrize("um_per_px", [None, RIGHT * 0.85, RIGHT, RIGHT * 1.2])
@pytest.mark.parametrize("sought", ["all", "white"])
def test_people_have_smaller_and_larger_red_cells(
    fields: Path, out: UPath, threads: Executor, um_per_px: float | None, sought: Sought
) -> None:
    row = count(fields, out, threads, um_per_px, sought)
    assert "scale_doubtful" not in row.flags
    if um_per_px is not None:
        assert row.red_cell_um == pytest.approx(WHOLE_RED_CELL_UM * um_per_px / RIGHT, rel=0.05)


def test_one_field_of_several_may_tell_a_wrong_scale(fields: Path, out: UPath, threads: Executor) -> None:
    tag(fields / "f001.png", 2 * RIGHT)
    row = count(fields, out, threads, None)
    assert {"scale_doubtful", "mixed_scale"} <= set(row.flags)
    sizes = pd.read_parquet(str(out / "fields")).set_index("field")["red_cell_um"]
    assert sizes["f001.tif"] == pytest.approx(2 * WHOLE_RED_CELL_UM, rel=0.1)
    assert sizes["f000.png"] == pytest.approx(WHOLE_RED_CELL_UM, rel=0.05)


def test_a_slide_without_red_cells_tells_nothing(tmp_path: Path, out: UPath, threads: Executor) -> None:
    fields = Path(make_slide(UPath(tmp_path / "empty" / "s1"), 2, cells=2).path)
    row = count(fields, out, threads, RIGHT / 2)
    assert row.red_cell_um is None
    assert "scale_doubtful" not in row.flags


def test_the_doubt_is_shown_in_words(fields: Path, out: UPath, threads: Executor) -> None:
    row = count(fields, out, threads, RIGHT * 2)
    fitting = RIGHT * 2 * WHOLE_RED_CELL_UM / (row.red_cell_um or 0)
    shown = " ".join(CliRunner().invoke(app, ["show", str(out)]).stdout.split())
    assert "scale_doubtful" in shown
    assert f"where they are about 7.6: about {fitting:.2g} µm/px would fit" in shown
