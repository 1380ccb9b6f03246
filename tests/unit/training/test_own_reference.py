"""What a laboratory's named cells tell of a taught classifier's misnaming, and what they do not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wbc.models import builders, registry
from wbc.models.cards import ModelCard, ModelRef
from wbc.models.reference_cells import ReferenceCells, keep_reference_cells
from wbc.training.own_reference import reference_of, stands_for

HALF = (0.5, 0.5, 0.5)
NET = {"backbone": "test_efficientnet"}
CARD = ModelCard("c", "1", "classifier", "crop_classifier", NET, ("lymphocyte", "monocyte"), 0.2, 32, HALF, HALF, "")
COUNTED = pd.DataFrame({"cell_type": ["lymphocyte"] * 30 + ["monocyte"] * 4 + ["unidentified"] * 6})
CHANCES = np.array([[0.9, 0.1], [0.3, 0.7]])


@pytest.fixture
def parent(tmp_path: Path) -> ModelRef:
    registry.save(tmp_path / "parent", builders.build(CARD), CARD)
    others = ReferenceCells(np.full((3, 2), 0.5, np.float16), ("monocyte",) * 3, ("a", "b", "b"))
    keep_reference_cells(tmp_path / "parent", others)
    return registry.resolve(str(tmp_path / "parent"), "classifier")[0]


def test_a_cell_stands_for_those_that_were_counted_as_it_was() -> None:
    named = pd.DataFrame({"counted_as": ["lymphocyte", "lymphocyte", "monocyte", "unidentified", "monocyte"]})
    weights = stands_for(named, COUNTED)
    assert weights is not None
    assert weights.tolist() == [15, 15, 2, 6, 2]


def test_a_type_that_was_counted_as_something_else_since_stands_for_itself() -> None:
    weights = stands_for(pd.DataFrame({"counted_as": ["basophil"] * 2}), COUNTED)
    assert weights is not None
    assert weights.tolist() == [1, 1]


def test_of_cells_that_somebody_chose_nothing_tells_by_what() -> None:
    assert stands_for(pd.DataFrame({"counted_as": ["lymphocyte", ""]}), COUNTED) is None


def test_the_laboratory_stands_beside_those_of_the_parent(parent: ModelRef) -> None:
    weights = np.array([15, 2], np.float32)
    cells = reference_of(parent, CHANCES, ("lymphocyte", "monocyte"), weights, "/out", is_own=True)
    assert cells is not None
    assert (cells.own, cells.laboratories) == ("/out", ("a", "b", "b", "/out", "/out"))
    assert cells.weights is not None
    assert cells.weights.tolist() == [1, 1, 1, 15, 2]
    assert cells.elsewhere.laboratories == ("a", "b", "b")
    np.testing.assert_allclose(cells.probabilities[3:], CHANCES, atol=1e-3)


def test_where_the_parents_layer_is_kept_it_is_one_stranger_more(parent: ModelRef) -> None:
    weights = np.ones(2, np.float32)
    cells = reference_of(parent, CHANCES, ("lymphocyte", "monocyte"), weights, "/out", is_own=False)
    assert cells is not None
    assert cells.own is None
    assert set(cells.elsewhere.laboratories) == {"a", "b", "/out"}


def test_without_weights_the_parents_cells_tell_alone(parent: ModelRef) -> None:
    cells = reference_of(parent, CHANCES, ("lymphocyte", "monocyte"), None, "/out", is_own=True)
    assert cells is not None
    assert set(cells.laboratories) == {"a", "b"}
