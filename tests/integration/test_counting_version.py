"""Counts do not change unless COUNTING_VERSION is raised: the demo's slides against the cells they had when it was.

Whoever changes counts on purpose raises COUNTING_VERSION and runs this file as a program, which writes
`tests/golden/cells.json` anew; what changed is then seen in the diff.
"""

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from upath import UPath

from wbc.counting.job import COUNTING_VERSION
from wbc.counting.slide import Job, count_slide
from wbc.models import registry
from wbc.models.bfloat16 import InBfloat16
from wbc.models.engines import ready_detector
from wbc.storage.counts import read_slide_row
from wbc.storage.slides import discover
from wbc.synth.smear import render_slides
from wbc.taxonomy import load_taxonomy
from wbc.types import Precision

GOLDEN = Path(__file__).parents[1] / "golden" / "cells.json"
# Processors round differently, and a cell whose score is near the threshold may come or go.
FEWEST_SAME, SAME_PX = 0.99, 3


def counted(folder: Path) -> tuple[dict[str, dict[str, list[list[int]]]], set[str | None]]:
    """Middles x, y in px by field and cell type of the slides of `make demo`, and the number formats of the models."""
    render_slides(folder / "slides", 2, 3, 1)
    detector, _ = registry.resolve("bundled:detector", "detector")
    classifier, _ = registry.resolve("bundled:classifier", "classifier")
    job = Job(UPath(folder / "out"), detector, classifier, load_taxonomy("blood"), device="cpu", engine="torch")
    precisions = set()
    with ThreadPoolExecutor(1) as executor:
        for slide in discover(UPath(folder / "slides")):
            count_slide(slide, job, executor)
            precisions.add(read_slide_row(job.out, slide.slide_id).precision)
    cells = pd.read_parquet(folder / "out" / "cells")
    cells["x"], cells["y"] = (cells["x0"] + cells["x1"]) / 2, (cells["y0"] + cells["y1"]) / 2
    middles: dict[str, dict[str, list[list[int]]]] = {}
    for (slide_id, field, cell_type), rows in cells.groupby(["slide_id", "field", "cell_type"], observed=True):
        of_field = middles.setdefault(f"{slide_id}/{field}", {})
        of_field[str(cell_type)] = sorted(rows[["x", "y"]].round().astype(int).to_numpy().tolist())
    return middles, precisions


@contextmanager
def in_format(precision: Precision) -> Iterator[None]:
    """Within, models run in this number format, whatever this processor is the faster with."""
    before, InBfloat16.half_precision = InBfloat16.half_precision, precision == "bfloat16"
    ready_detector.cache_clear()  # it is made ready for one format
    try:
        yield
    finally:
        InBfloat16.half_precision = before
        ready_detector.cache_clear()


def n_same(a: list[list[int]], b: list[list[int]]) -> int:
    """How many middles of one list are in the other too."""
    if not a or not b:
        return 0
    apart = np.abs(np.array(a)[:, None] - np.array(b)[None]).max(2)
    return int((apart.min(1) <= SAME_PX).sum())


@pytest.mark.slow
@pytest.mark.timeout(1200)  # minutes on a busy machine
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_demo_counts_as_it_did_when_the_counting_version_was_raised(precision: Precision, tmp_path: Path) -> None:
    golden: dict[str, Any] = json.loads(GOLDEN.read_text())
    assert golden["counting_version"] == COUNTING_VERSION, f"{GOLDEN.name} is of another version: {__doc__}"
    with in_format(precision):
        cells, precisions = counted(tmp_path)
    assert precisions == {precision}
    assert cells.keys() == golden["cells"].keys()
    for field, by_type in golden["cells"].items():
        n = max(sum(map(len, by_type.values())), sum(map(len, cells[field].values())))
        same = sum(n_same(was, cells[field].get(cell_type, [])) for cell_type, was in by_type.items())
        assert same >= FEWEST_SAME * n, f"{field}: {n - same} of {n} cells are others. {__doc__}"


def write_golden() -> None:
    """Count the demo in float32 and keep where its cells lie."""
    with tempfile.TemporaryDirectory() as folder, in_format("float32"):
        cells, _ = counted(Path(folder))
    golden = {"counting_version": COUNTING_VERSION, "cells": cells}
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    write_golden()
