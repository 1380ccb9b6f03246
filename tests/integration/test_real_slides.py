"""The bundled models on real slides: white cells are found, named and counted, and none is seen where there is none.

Bounds are what any model worth bundling holds on a few fields; what the bundled ones measure is told in the docs.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from upath import UPath

from wbc.cells.geometry import box_iou
from wbc.counting.slide import Job, count_slide
from wbc.datasets.coco import read_coco
from wbc.datasets.labels import LabelledPicture
from wbc.models import registry
from wbc.storage.counts import read_slide_row, read_table
from wbc.storage.images import read_field
from wbc.storage.slides import discover
from wbc.taxonomy import GENERIC, load_taxonomy

pytestmark = pytest.mark.real

BESIDE = ("rbc", "platelet")


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """The count that `wbc count` makes unless it is told otherwise, without a GPU."""
    detector, classifier = (registry.resolve(f"bundled:{task}", task)[0] for task in ("detector", "classifier"))
    return Job(UPath(tmp_path / "out"), detector, classifier, load_taxonomy("blood"), device="cpu")


def count_fields(folder: Path, n_fields: int, job: Job, executor: Executor) -> None:
    """Count the first fields of a slide, as slide `s`."""
    (slide,) = discover(UPath(folder))
    outcome = count_slide(replace(slide, slide_id="s", field_paths=slide.field_paths[:n_fields]), job, executor)
    assert (outcome.status, outcome.n_fields, outcome.failed_fields) == ("counted", n_fields, ())


def n_matched(found: np.ndarray, true: np.ndarray) -> int:
    """How many true boxes (N,4) are found: pairs of IoU 0.5 and more, best first, each box in one of them at most."""
    iou, n = box_iou(true, found), 0
    while iou.size and iou.max() >= 0.5:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row], iou[:, column], n = 0, 0, n + 1
    return n


def n_found(cells: pd.DataFrame, truths: Sequence[LabelledPicture], is_meant: Callable[[str], bool]) -> tuple[int, int]:
    """How many true cells of the kinds that are meant there are, and how many of them are among `cells`."""
    n_true = n = 0
    for truth in truths:
        true = truth.boxes[[is_meant(label) for label in truth.labels]]
        boxes = cells.loc[cells["field"] == truth.path.name, ["x0", "y0", "x1", "y1"]].to_numpy(np.float32)
        n_true, n = n_true + len(true), n + n_matched(boxes, true)
    return n_true, n


@pytest.mark.parametrize(("folder", "slide_id"), [("slides", "slide-04"), ("slides_pbc", "slide-07")])
def test_white_cells_are_found_named_and_counted(
    real_data: Path, folder: str, slide_id: str, job: Job, threads: Executor
) -> None:
    pictures = read_coco(real_data / folder, real_data / folder / "truth_coco.json")
    truths = [p for p in pictures if p.path.parent.name == slide_id][:2]
    count_fields(real_data / folder / slide_id, len(truths), job, threads)

    cells = read_table(job.out, "cells", "s").to_pandas()
    white, red = cells[~cells["cell_type"].isin(BESIDE)], cells[cells["cell_type"] == "rbc"]
    n_true, n = n_found(white, truths, lambda label: label not in BESIDE)
    assert n >= 0.9 * n_true
    assert n >= 0.85 * len(white)
    n_true, n = n_found(red, truths, lambda label: label == "rbc")
    assert n >= 0.7 * n_true
    assert len(red) <= 1.7 * n_true, "some were not labelled, but not so many"

    sure = Counter(label for truth in truths for label in truth.labels if label not in (*BESIDE, GENERIC))
    rows = read_table(job.out, "differentials", "s").to_pandas().set_index("cell_type")
    percent = 100 * pd.Series(sure) / sure.total()
    outside = [kind for kind, p in percent.items() if not rows["ci_low"][kind] <= p <= rows["ci_high"][kind]]
    assert not outside, f"true {percent.round(1).to_dict()}, counted {rows['percent'].round(1).dropna().to_dict()}"


@pytest.mark.parametrize("folder", ["slides", "slides_pbc", "slides_no_white"])
def test_no_real_field_is_taken_for_a_damaged_one(real_data: Path, folder: str) -> None:
    fields = [path for slide in discover(UPath(real_data / folder)) for path in slide.field_paths]
    assert len(fields) > 10
    for path in fields:
        assert read_field(path).ndim == 3


def test_no_white_cell_is_seen_where_there_is_none(real_data: Path, job: Job, threads: Executor) -> None:
    count_fields(real_data / "slides_no_white" / "slide-09", 5, job, threads)
    row = read_slide_row(job.out, "s")
    assert "no_cells" in row.flags
    assert row.n_differential == 0
    assert row.n_cells > 100, "red cells are counted beside"
