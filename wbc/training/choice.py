"""Which cells are most worth naming: typical ones from all over the feature space, unsure ones, of every kind."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wbc.training.last_layer import spread

TYPICAL = 0.7  # of the cells of a kind; the others are the least sure ones
ROUNDS = 20
# Of a kind's cells so many are looked at, for each that is to be named: features cost more than choosing.
LOOKED_AT = 10


def shortlist(kinds: Sequence[str], scores: NDArray[np.floating], per_kind: int) -> NDArray[np.int64]:
    """The indices, rising, of cells to look at: of each kind up to LOOKED_AT times `per_kind`.

    Half of them are the least sure, by `scores` (N,), the others stand evenly in the order of the cells, and so come
    from all slides and fields.
    """
    chosen: list[int] = []
    for kind in sorted(set(kinds)):
        of_kind = np.array([i for i, other in enumerate(kinds) if other == kind])
        most = min(LOOKED_AT * per_kind, len(of_kind))
        unsure = of_kind[np.argsort(scores[of_kind], kind="stable")[: most // 2]]
        rest = np.setdiff1d(of_kind, unsure)
        chosen += [*unsure.tolist(), *rest[_evenly(len(rest), most - len(unsure))].tolist()]
    return np.array(sorted(chosen), np.int64)


def choose(
    features: NDArray[np.floating], kinds: Sequence[str], scores: NDArray[np.floating], per_kind: int
) -> NDArray[np.int64]:
    """The indices of the cells most worth naming, rising: `per_kind` of each kind, all of a kind that has no more.

    `features` are (N,F), `kinds` what each cell is called for now, `scores` (N,) how surely. Most of a kind's cells
    stand for a part of its feature space each: the nearest to the middle of a cluster, all features counting alike. The
    others are the least sure. Equal input, equal choice.
    """
    if not len(features):
        return np.zeros(0, np.int64)
    points = features.astype(np.float64) / spread(features)
    chosen: list[int] = []
    for kind in sorted(set(kinds)):
        of_kind = np.array([i for i, other in enumerate(kinds) if other == kind])
        n = min(per_kind, len(of_kind))
        typical = of_kind[_middles(points[of_kind], int(np.ceil(TYPICAL * n)))]
        rest = np.setdiff1d(of_kind, typical)
        unsure = rest[np.argsort(scores[rest], kind="stable")[: n - len(typical)]]
        chosen += [*typical.tolist(), *unsure.tolist()]
    return np.array(sorted(chosen), np.int64)


def _middles(points: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The indices of `n` cells, each the nearest to the mean of one of `n` clusters (k-means from far apart starts)."""
    starts = _far_apart(points, n)
    means = points[starts]
    for _ in range(ROUNDS):
        nearest = _squares(points, means).argmin(1)
        moved = np.stack([points[nearest == k].mean(0) if (nearest == k).any() else means[k] for k in range(n)])
        if np.array_equal(moved, means):
            break
        means = moved
    chosen: list[int] = []
    for distances in _squares(points, means).T:
        distances[chosen] = np.inf
        chosen.append(int(distances.argmin()))
    return np.array(chosen, np.int64)


def _far_apart(points: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The indices of `n` points: the nearest to the mean of all, then always the farthest from those that are taken."""
    chosen = [int(_squares(points, points.mean(0, keepdims=True))[:, 0].argmin())]
    distances = _squares(points, points[chosen])[:, 0]
    while len(chosen) < n:
        distances[chosen] = -1
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, _squares(points, points[chosen[-1:]])[:, 0])
    return np.array(chosen, np.int64)


def _squares(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances (N,K) of points (N,F) from others (K,F)."""
    squares = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
    return np.asarray(squares.clip(min=0))


def _evenly(n: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` of `n` indices, as even as can be."""
    return np.floor(np.arange(wanted) * n / max(wanted, 1)).astype(np.int64)
