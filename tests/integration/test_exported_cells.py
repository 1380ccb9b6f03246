"""A count's cells go out as annotations in every format that is written, with their scores and numbers."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jobs import make_job
from typer.testing import CliRunner
from upath import UPath

from wbc.cli.main import app
from wbc.counting.slide import count_slide
from wbc.datasets.formats import WRITERS, Source, read_source
from wbc.storage.slides import discover

SIDES = ["x0", "y0", "x1", "y1"]


@pytest.mark.parametrize("form", WRITERS)
def test_a_counts_cells_are_exported(painted_slide: UPath, tmp_path: Path, form: str) -> None:
    job, (slide,) = make_job(UPath(tmp_path / "out")), discover(painted_slide)
    with ThreadPoolExecutor(2) as threads:
        count_slide(slide, job, threads)
    target = tmp_path / ("e.xml" if form == "cvat" else "e" if form == "geojson" else "e.json")
    told = CliRunner().invoke(app, ["annotations", "export", str(job.out), str(target), "--to", form])
    assert told.exit_code == 0, told.stderr
    cells = pd.read_parquet(job.out / "cells")
    assert f"{len(cells)} cells of {len(slide.field_paths)} fields" in told.stdout
    if form == "label_studio":
        tasks = json.loads(target.read_text())
        scores = [region["score"] for task in tasks for region in task["predictions"][0]["result"]]
        np.testing.assert_allclose(sorted(scores), sorted(cells["score"]))
        return
    pictures = read_source(Source(target, Path(str(slide.field_paths[0].parent.parent)), None))
    for picture in pictures:
        own = cells[cells["field"] == picture.path.name]
        np.testing.assert_allclose(picture.boxes, own[SIDES], atol=0.01)
        assert picture.labels == tuple(own["cell_type"].astype(str))
