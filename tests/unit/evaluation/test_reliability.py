"""Reliability: what scores say, and what they are worth."""

import numpy as np
import pytest

from wbc.evaluation.reliability import reliability_of


def test_scores_that_say_what_they_are_worth_have_no_error() -> None:
    told = reliability_of(np.repeat([0.25, 0.75], 4), np.array([1, 0, 0, 0, 1, 1, 1, 0], bool))
    assert told.ece == pytest.approx(0)
    assert told.n.tolist() == [0, 0, 4, 0, 0, 0, 0, 4, 0, 0]


def test_boasting_is_told_by_how_much() -> None:
    assert reliability_of(np.full(10, 0.95), np.arange(10) < 5).ece == pytest.approx(0.45)


def test_nothing_has_no_reliability() -> None:
    assert np.isnan(reliability_of(np.zeros(0), np.zeros(0, bool)).ece)
