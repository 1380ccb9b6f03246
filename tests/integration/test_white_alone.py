"""A count of white cells alone: the same white cells, nulls for what was not looked for, and nothing pretended."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jobs import make_job
from typer.testing import CliRunner
from upath import UPath

from wbc.cells.geometry import box_iou
from wbc.cells.tiles import TileSettings
from wbc.cli.main import app
from wbc.counting.parameters import CountParameters
from wbc.counting.recount import Change, recount_slides
from wbc.counting.report import read_report
from wbc.counting.slide import CountSettings, Job, SlideOutcome, count_slide, is_counted
from wbc.counting.standing import request_of
from wbc.models import bfloat16, registry
from wbc.models.engines import ready_detector
from wbc.sought import Sought
from wbc.storage.counts import read_slide_row
from wbc.storage.slides import discover
from wbc.synth.smear import SmearSettings, render_slides
from wbc.taxonomy import load_taxonomy


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> UPath:
    folder = tmp_path_factory.mktemp("rendered")
    settings = SmearSettings(height_px=600, width_px=800, um_per_px=0.2, white_cells_per_field=(3, 4))
    render_slides(folder, 1, 3, 5, settings)
    return UPath(folder)


def job_of(out: UPath, cells: Sought) -> Job:
    detector, _ = registry.resolve("bundled:detector", "detector")
    return make_job(out, detector=detector, settings=CountSettings(tiles=TileSettings(sought=cells)))


def counted(slides: UPath, job: Job) -> SlideOutcome:
    (slide,) = discover(slides)
    with ThreadPoolExecutor(1) as executor:
        return count_slide(replace(slide, um_per_px=0.2), job, executor)


@pytest.fixture(scope="module")
def outs(slides: UPath, tmp_path_factory: pytest.TempPathFactory) -> dict[str, UPath]:
    """OUT by the cells that were looked for, in float32: what differs is how they were looked for, and no rounding."""
    made: dict[str, UPath] = {}
    cells: Sought
    ready_detector.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bfloat16, "has_bfloat16", lambda _: False)
        for cells in ("all", "white", "white_and_platelets"):
            made[cells] = UPath(tmp_path_factory.mktemp("out") / cells)
            counted(slides, job_of(made[cells], cells))
    ready_detector.cache_clear()
    return made


def counts(out: UPath) -> dict[str, float]:
    rows = pd.read_parquet(str(out / "differentials"))
    return dict(zip(rows["cell_type"], rows["count"], strict=True))


def test_the_white_cells_are_the_same(outs: dict[str, UPath]) -> None:
    every, white = (pd.read_parquet(str(outs[cells] / "cells")) for cells in ("all", "white"))
    expected = every[every["cell_type"] == "unidentified"]
    assert 8 <= len(expected) == len(white)
    for field, cells in expected.groupby("field", observed=True):
        boxes = (frame[["x0", "y0", "x1", "y1"]].to_numpy() for frame in (cells, white[white["field"] == field]))
        assert box_iou(*boxes).max(axis=1).min() > 0.84, field


def test_what_was_not_looked_for_is_null_and_never_0(outs: dict[str, UPath]) -> None:
    every, white, with_platelets = (counts(outs[cells]) for cells in ("all", "white", "white_and_platelets"))
    assert every["rbc"] > 0 < every["platelet"]
    assert np.isnan(white["rbc"])
    assert np.isnan(white["platelet"])
    assert np.isnan(with_platelets["rbc"])
    assert with_platelets["platelet"] == every["platelet"]
    assert np.isnan(white["lymphocyte"])  # no classifier ran
    assert white["unidentified"] == every["unidentified"]
    rows = {cells: read_slide_row(out, "slide-01") for cells, out in outs.items()}
    assert {cells: row.cells for cells, row in rows.items()} == {cells: cells for cells in outs}
    assert len({row.count_id for row in rows.values()}) == 3
    assert rows["white"].n_cells == rows["white"].n_differential == every["unidentified"]


def test_another_choice_is_another_count_and_the_same_one_stands(slides: UPath, outs: dict[str, UPath]) -> None:
    (slide,) = discover(slides)
    slide = replace(slide, um_per_px=0.2)
    assert is_counted(slide, job_of(outs["white"], "white"))
    assert not is_counted(slide, job_of(outs["white"], "all"))
    assert not is_counted(slide, job_of(outs["all"], "white"))


def test_a_recount_knows_what_was_looked_for(slides: UPath, tmp_path: Path) -> None:
    out = UPath(tmp_path / "out")
    counted(slides, job_of(out, "white"))
    (outcome,) = recount_slides(out, ["slide-01"], Change(load_taxonomy("marrow_icsh"), 0.8))
    assert (outcome.status, outcome.reason, outcome.cells) == ("counted", "", "white")
    report = read_report(out, "slide-01")
    assert report.row.cells == "white"
    assert {row.count for row in report.cell_types if row.cell_type in ("rbc", "platelet")} <= {None}


def test_people_are_told(outs: dict[str, UPath]) -> None:
    shown = CliRunner().invoke(app, ["show", str(outs["white"])])
    assert shown.exit_code == 0
    assert "red cells and platelets were not looked for" in shown.stdout
    assert " rbc " not in shown.stdout
    assert "not looked for" not in CliRunner().invoke(app, ["show", str(outs["all"])]).stdout
    (slide,) = json.loads(CliRunner().invoke(app, ["show", str(outs["white"]), "--json"]).stdout)["slides"]
    assert slide["cells"] == "white"
    assert {row["count"] for row in slide["differential"] if row["cell_type"] == "rbc"} == {None}


def test_a_slide_whose_white_cells_a_first_look_misses_is_looked_at_whole(
    slides: UPath,
    outs: dict[str, UPath],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("wbc.cells.detect.find_places", lambda _: np.zeros((0, 4), np.float32))
    out = UPath(tmp_path / "out")
    counted(slides, job_of(out, "white"))
    assert "a first look misses white cells of field-" in caplog.text
    expected = counts(outs["white"])
    assert {name: n for name, n in counts(out).items() if n == n} == {n: k for n, k in expected.items() if k == k}
    assert np.isnan(counts(out)["rbc"])


TYPES = """
name = "own"
note = "."
cell_types = [
    { name = "megakaryocyte", abbreviation = "M", lineage = "other", nucleated = true, in_differential = true },
    { name = "thrombocyte", abbreviation = "T", lineage = "other", nucleated = false, in_differential = false },
]
"""


@pytest.mark.parametrize(("found", "is_refused"), [("megakaryocyte", False), ("thrombocyte", True)])
def test_a_detector_that_finds_cells_of_another_sort_counts_all(
    found: str, is_refused: bool, slides: UPath, dark_folder: Path, tmp_path: Path
) -> None:
    folder, taxonomy = tmp_path / found, tmp_path / "own.toml"
    shutil.copytree(dark_folder, folder)
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"classes": [found]}))
    taxonomy.write_text(TYPES)
    asked = CountParameters(str(slides), str(tmp_path / "out"), str(folder), None, str(taxonomy), cells="white")
    if is_refused:
        with pytest.raises(ValueError, match="finds thrombocyte beside white cells"):
            request_of(asked)
    else:
        assert request_of(asked).job.settings.tiles.sought == "white"
