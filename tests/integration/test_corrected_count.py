"""A count whose classifier knows how it misnames: tables, JSON and terminal have the corrected percentages."""

import io
import json
import shutil
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jobs import make_job
from rich.console import Console
from upath import UPath

from benchmarks.counted import read_tables
from wbc.cli.tables import report_table
from wbc.counting.correction import kept_certainty, kept_confusion
from wbc.counting.recount import Change, recount_slides
from wbc.counting.report import read_report, report_json
from wbc.counting.slide import Job, count_slide
from wbc.differential import differential_of, told_alone
from wbc.misnaming import corrected
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.reference_cells import ReferenceCells, keep_reference_cells
from wbc.models.registry import ModelRef
from wbc.storage.counts import read_evidence
from wbc.storage.slides import discover
from wbc.taxonomy import load_taxonomy

BLOOD = load_taxonomy("blood")
HALF = (0.5, 0.5, 0.5)


def saved(folder: Path, **card: Any) -> ModelCard:
    made = ModelCard(name=folder.name, version="1", mean=HALF, std=HALF, sha256="", **card)
    module = builders.build(made)
    if made.task == "classifier":
        with torch.no_grad():  # whatever it sees: four to one for a lymphocyte
            module.get_parameter("classifier.weight").zero_()
            module.get_parameter("classifier.bias").copy_(torch.tensor([0.0, 1.386]))
    return registry.save(folder, module, made)


@pytest.fixture
def detector(tmp_path: Path) -> ModelRef:
    """Finds painted discs and takes them for white cells."""
    settings = {"level": 0.5, "smallest_px": 12}
    saved(
        tmp_path / "white",
        task="detector",
        builder="dark_regions",
        arguments=settings,
        classes=("wbc",),
        um_per_px=0.2,
        input_px=0,
    )
    return registry.resolve(str(tmp_path / "white"), "detector")[0]


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A classifier that names all cells lymphocytes."""
    saved(
        tmp_path / "kinds",
        task="classifier",
        builder="crop_classifier",
        arguments={"backbone": "test_efficientnet"},
        classes=("monocyte", "lymphocyte"),
        um_per_px=0.4,
        input_px=32,
        threshold=0.5,
    )
    return tmp_path / "kinds"


def reference_cells() -> ReferenceCells:
    """Of three laboratories: a third of the monocytes was named lymphocyte."""
    right, wrong, lymphocyte = [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]
    chances = np.array(([right] * 40 + [wrong] * 20 + [lymphocyte] * 60) * 3, np.float16)
    types = (("monocyte",) * 60 + ("lymphocyte",) * 60) * 3
    return ReferenceCells(chances, types, ("a",) * 120 + ("b",) * 120 + ("c",) * 120)


@pytest.fixture
def counted(painted_slide: UPath, tmp_path: Path, detector: ModelRef, kinds: Path, threads: Executor) -> Job:
    """A job whose slide was counted by a classifier with reference cells."""
    keep_reference_cells(kinds, reference_cells())
    classifier = registry.resolve(str(kinds), "classifier")[0]
    job = make_job(UPath(tmp_path / "out"), detector=detector, classifier=classifier)
    count_slide(discover(painted_slide)[0], job, threads)
    return job


def test_the_tables_hold_what_the_function_says(counted: Job) -> None:
    tables = read_tables(counted.out)
    types, fields = tables["cells"]["cell_type"].tolist(), tables["cells"]["field"].tolist()
    kinds = read_evidence(counted.out, "s1")[1].origin.kinds
    confusion = kept_confusion(counted.out, kinds, BLOOD)
    assert confusion is not None
    expected = {
        row.cell_type: row
        for row in corrected(
            told_alone(differential_of(types, BLOOD), ("monocyte", "lymphocyte"), BLOOD),
            types,
            fields,
            confusion,
            BLOOD,
        ).rows
    }
    rows = tables["differentials"].set_index("cell_type")
    for column in ("percent", "ci_low", "ci_high", "percent_corrected", "low", "high"):
        found = {name: None if np.isnan(value) else value for name, value in rows[column].items()}
        assert found == {name: getattr(row, column) for name, row in expected.items()}, column
    assert rows.loc["lymphocyte", "percent"] == 100
    assert 60 < rows.loc["lymphocyte", "percent_corrected"] < 100
    assert rows.loc["monocyte", "high"] > rows.loc["monocyte", "ci_high"] > 0


def test_counted_again_the_numbers_are_the_same(counted: Job, threads: Executor) -> None:
    before = read_tables(counted.out)["differentials"]
    slides = counted.out.parent / "slides"
    (counted.out / "slides" / "s1.parquet").unlink()
    count_slide(discover(slides)[0], counted, threads)
    pd.testing.assert_frame_equal(read_tables(counted.out)["differentials"], before)


def test_a_recount_needs_no_model_and_tells_the_same(counted: Job, kinds: Path) -> None:
    before = read_tables(counted.out)["differentials"]
    shutil.rmtree(kinds)
    recount_slides(counted.out, ["s1"], Change(min_score=1.0))
    recount_slides(counted.out, ["s1"], Change(min_score=counted.settings.min_score))
    pd.testing.assert_frame_equal(read_tables(counted.out)["differentials"], before)
    (outcome,) = recount_slides(counted.out, ["s1"], Change(taxonomy=load_taxonomy("marrow_icsh")))
    assert outcome.status == "counted"
    marrow = read_tables(counted.out)["differentials"].set_index("cell_type")
    assert 60 < marrow.loc["lymphocyte", "percent_corrected"] < 100


def test_without_the_copy_in_out_a_recount_is_refused_and_a_count_makes_it_anew(
    counted: Job, threads: Executor
) -> None:
    (copy,) = (counted.out / ".wbc" / "reference_cells").iterdir()
    copy.unlink()
    kept_confusion.cache_clear()
    kept_certainty.cache_clear()
    (outcome,) = recount_slides(counted.out, ["s1"], Change(min_score=0.9))
    assert "reference cells" in outcome.reason
    count_slide(discover(counted.out.parent / "slides")[0], replace(counted, force=True), threads)
    assert copy.is_file()


def test_json_and_terminal_show_them(counted: Job) -> None:
    report = read_report(counted.out, "s1")
    told = {row["cell_type"]: row for row in json.loads(json.dumps(report_json(report)))["differential"]}
    undone = told["lymphocyte"]["percent_corrected"]
    assert told["neutrophil"]["percent_corrected"] is None
    sink = io.StringIO()
    Console(file=sink, width=80).print(report_table(report))
    lines = {line.strip().split("  ")[0]: line for line in sink.getvalue().splitlines()}
    assert "misnaming undone" in sink.getvalue()
    assert f"{undone:.1f} ({told['lymphocyte']['low']:.0f} – {told['lymphocyte']['high']:.0f})" in lines["lymphocyte"]
    assert lines["neutrophil"].rstrip().endswith("not measured")
    assert "not told" in lines["neutrophil"]
    assert told["neutrophil"]["count"] is None
    assert all(len(line) <= 80 for line in sink.getvalue().splitlines())


def test_a_classifier_without_reference_cells_corrects_nothing(
    painted_slide: UPath, tmp_path: Path, detector: ModelRef, kinds: Path, threads: Executor
) -> None:
    classifier = registry.resolve(str(kinds), "classifier")[0]
    job = make_job(UPath(tmp_path / "out"), detector=detector, classifier=classifier)
    count_slide(discover(painted_slide)[0], job, threads)
    report = read_report(job.out, "s1")
    assert all((row.percent_corrected, row.low, row.high) == (None, None, None) for row in report.cell_types)
    sink = io.StringIO()
    Console(file=sink, width=80).print(report_table(report))
    assert "misnaming undone" not in sink.getvalue()
    assert "not measured" not in sink.getvalue()
