"""Scores that say how often a name is right among strangers."""

import numpy as np
import pytest

from wbc.cells.certainty import FLATTENING, Certainty, certainty_of, verdicts
from wbc.taxonomy import UNIDENTIFIED, load_taxonomy
from wbc.types import CellNames

BLOOD = load_taxonomy("blood")


def named(types: list[str], scores: list[float]) -> CellNames:
    seconds = np.array([0.5 * (1 - score) for score in scores], np.float32)
    return CellNames(
        np.array(types, object), np.array(scores, np.float32), np.full(len(types), "basophil", object), seconds
    )


def test_it_is_the_mean_over_laboratories_whatever_their_number_of_cells() -> None:
    cells = named(["monocyte"] * 50, [0.7] * 50)
    true = ["monocyte"] * 10 + ["lymphocyte"] * 30 + ["monocyte"] * 10  # all of ten, a quarter of forty
    told = certainty_of(cells, true, ["a"] * 10 + ["b"] * 40, BLOOD)
    assert told.lines["monocyte"] == pytest.approx((0.7, 0.625, 0.0))
    np.testing.assert_allclose(told.of(cells).scores, 0.625, atol=1e-6)


def test_surer_names_stay_surer() -> None:
    scores = [0.6] * 20 + [0.9] * 20
    true = ["monocyte"] * 10 + ["lymphocyte"] * 10 + ["monocyte"] * 20
    told = certainty_of(named(["monocyte"] * 80, scores * 2), true * 2, ["a"] * 40 + ["b"] * 40, BLOOD)
    middle, right, slope = told.lines["monocyte"]
    steepest = 0.5 / 0.3
    assert (middle, right) == pytest.approx((0.75, 0.75))
    assert slope == pytest.approx(steepest * 0.15**2 / (0.15**2 + FLATTENING / 2))
    low, high = told.of(named(["monocyte"] * 2, [0.6, 0.9])).scores
    assert 0.7 < low < 0.75 < high < 0.8


def test_where_surer_names_are_wrong_more_often_all_are_worth_the_same() -> None:
    scores, true = [0.6] * 20 + [0.9] * 20, ["monocyte"] * 20 + ["lymphocyte"] * 20
    told = certainty_of(named(["monocyte"] * 80, scores * 2), true * 2, ["a"] * 40 + ["b"] * 40, BLOOD)
    assert told.lines["monocyte"] == pytest.approx((0.75, 0.5, 0.0))


def test_scores_stay_probabilities_and_the_second_type_gets_its_part_of_what_is_left() -> None:
    steep = Certainty({"monocyte": (0.5, 0.9, 1.0)})
    told = steep.of(named(["monocyte", "monocyte", "monocyte"], [0.4, 0.9, 1.0]))
    np.testing.assert_allclose(told.scores, [0.8, 1, 1], atol=1e-6)
    np.testing.assert_allclose(told.second_scores, [0.1, 0, 0], atol=1e-6)


def test_what_too_few_cells_of_too_few_laboratories_tell_is_left_as_it_is() -> None:
    cells = named(["monocyte"] * 29 + [UNIDENTIFIED] * 30, [0.7] * 59)
    places = ["a"] * 20 + ["b"] * 9 + ["a"] * 15 + ["b"] * 15
    told = certainty_of(cells, ["monocyte"] * 59, places, BLOOD)
    assert told.lines == {}
    np.testing.assert_array_equal(told.of(cells).scores, cells.scores)
    np.testing.assert_array_equal(told.of(cells).second_scores, cells.second_scores)


def test_a_label_that_is_coarser_than_the_name_tells_nothing() -> None:
    true = ["neutrophil", "band_neutrophil", "segmented_neutrophil", "monocyte", "no such type"]
    np.testing.assert_array_equal(verdicts(true, "neutrophil", BLOOD), [1, 1, 1, 0, np.nan])
    np.testing.assert_array_equal(verdicts(true, "band_neutrophil", BLOOD), [np.nan, 1, 0, 0, np.nan])
    coarse = ["neutrophil"] * 20 + ["band_neutrophil"] * 4 + ["segmented_neutrophil"] * 6
    cells = named(["band_neutrophil"] * 60, [0.7] * 60)
    told = certainty_of(cells, coarse * 2, ["a"] * 30 + ["b"] * 30, BLOOD)
    assert told.lines["band_neutrophil"][1] == pytest.approx(0.4)
