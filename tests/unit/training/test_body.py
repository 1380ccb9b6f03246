"""When a body that learnt on is taken: only where it beats every simpler way and keeps what was learnt before."""

import numpy as np
import pytest
from torch import nn

from wbc.training.body import Trial


@pytest.mark.parametrize(
    ("before", "layer", "body", "old_after", "gains", "forgets"),
    [
        (5, 7, 8, 0.90, True, False),
        (5, 7, 8, 0.88, True, False),
        (5, 7, 8, 0.87, True, True),
        (5, 8, 8, 0.95, False, False),  # a tie is the simpler one's
        (9, 7, 8, 0.95, False, False),
        (5, 7, 4, 0.10, False, True),
    ],
)
def test_a_body_is_taken_where_it_gains_more_and_forgets_little(
    before: int, layer: int, body: int, old_after: float, gains: bool, forgets: bool
) -> None:
    right = [np.arange(10) < n for n in (before, layer, body)]
    old = 100, (0.9, 0.2, old_after), ("Elsewhere",)
    trial = Trial(("blast",) * 10, *right, np.zeros((10, 2)), np.arange(10), *old, nn.Identity())
    assert (trial.gains, trial.forgets, trial.pays) == (gains, forgets, gains and not forgets)
