"""Whether a score is what it says: of cells with a score of 0.8, eight in ten are right."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Scores in equal bins of 0..1: how many there are (B,), their mean, and the part of them that is right (B,).

    NaN where a bin is empty. `ece` is the expected calibration error, from 0 to 1 (Guo et al., ICML 2017, eq. 3).
    """

    n: NDArray[np.int64]
    score: NDArray[np.float64]
    right: NDArray[np.float64]
    ece: float


def reliability_of(scores: NDArray[np.float64], right: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """The reliability of scores (N,), each right or not (N,). Its error is NaN where there is none."""
    place = np.clip((scores * bins).astype(np.int64), 0, bins - 1)
    n = np.bincount(place, minlength=bins)
    empty = np.full(bins, np.nan)
    mean = np.divide(np.bincount(place, scores, bins), n, out=empty.copy(), where=n > 0)
    share = np.divide(np.bincount(place, right, bins), n, out=empty.copy(), where=n > 0)
    if not len(scores):
        return Reliability(n, mean, share, float("nan"))
    return Reliability(n, mean, share, float(np.nansum(np.abs(mean - share) * n) / len(scores)))
