"""White cells of a slide are named by a classifier, left unidentified, or fail by name."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import make_job, only, row
from upath import UPath

from benchmarks.counted import read_tables
from wbc.cells import classify as cell_names
from wbc.counting.slide import count_slide
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel, ModelRef


@pytest.fixture(scope="module")
def white(dark_card: ModelCard, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    """The painted cells' detector, calling them white cells."""
    card = replace(dark_card, classes=("wbc",))
    folder = tmp_path_factory.mktemp("white")
    registry.save(folder, builders.build(card), card)
    return registry.resolve(str(folder), "detector")[0]


def always_four_to_one(folder: Path, threshold: float) -> ModelRef:
    """A classifier that says, of whatever it sees, lymphocyte rather than monocyte."""
    card = ModelCard(
        name="kinds",
        version="1",
        task="classifier",
        builder="crop_classifier",
        arguments={"backbone": "test_efficientnet"},
        classes=("monocyte", "lymphocyte"),
        um_per_px=0.4,
        input_px=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        sha256="",
        threshold=threshold,
    )
    module = builders.build(card)
    with torch.no_grad():
        module.get_parameter("classifier.weight").zero_()
        module.get_parameter("classifier.bias").copy_(torch.tensor([0.0, 1.386]))
    registry.save(folder, module, card)
    return registry.resolve(str(folder), "classifier")[0]


@pytest.mark.parametrize(("threshold", "kind"), [(0.0, "lymphocyte"), (0.99, "unidentified")])
def test_white_cells_are_named_or_left_unidentified(
    painted_slide: UPath,
    out: UPath,
    tmp_path: Path,
    threads: Executor,
    white: ModelRef,
    threshold: float,
    kind: str,
) -> None:
    classifier = always_four_to_one(tmp_path / "kinds", threshold)
    count_slide(only(painted_slide), make_job(out, detector=white, classifier=classifier), threads)
    read = read_tables(out)
    assert set(read["cells"]["cell_type"]) == {kind}
    assert read["cells"]["type_score"].to_numpy() == pytest.approx(0.8, abs=0.01)
    counts = read["differentials"].set_index("cell_type")
    assert (counts["count"][kind], counts["percent"][kind]) == (18, 100)
    assert row(out)["n_differential"] == 18
    assert row(out)["n_unidentified"] == (18 if kind == "unidentified" else 0)


def test_a_field_whose_probabilities_are_no_numbers_fails_by_name(
    painted_slide: UPath,
    out: UPath,
    tmp_path: Path,
    threads: Executor,
    white: ModelRef,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(crops: np.ndarray, model: LoadedModel) -> np.ndarray:
        return np.full((len(crops), 2), np.nan, np.float32)

    monkeypatch.setattr(cell_names, "predict", broken)
    classifier = always_four_to_one(tmp_path / "kinds", 0.0)
    outcome = count_slide(only(painted_slide), make_job(out, detector=white, classifier=classifier), threads)
    assert outcome.status == "failed"
    reasons = {failed["field"]: failed["reason"] for failed in row(out)["failed_fields"]}
    assert reasons["f000.png"] == "5 of 5 cells have probabilities that are not numbers (kinds)"
    assert {*reasons} == {"f000.png", "f001.png", "f002.png"}
    assert row(out)["n_cells"] == 0


def test_without_a_classifier_white_cells_are_unidentified(
    painted_slide: UPath, out: UPath, threads: Executor, white: ModelRef
) -> None:
    count_slide(only(painted_slide), make_job(out, detector=white), threads)
    cells = read_tables(out)["cells"]
    assert set(cells["cell_type"]) == {"unidentified"}
    assert cells["type_score"].isna().all()
    assert "unidentified_over_10_percent" in row(out)["flags"]
