"""Class probabilities of cells -> what a taxonomy calls them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wbc.taxonomy import UNIDENTIFIED, Taxonomy, label_matrix
from wbc.types import CellNames, Threshold

Chances = NDArray[np.float64]


def name_cells(
    probabilities: NDArray[np.floating], classes: Sequence[str], taxonomy: Taxonomy, threshold: Threshold
) -> CellNames:
    """What the taxonomy calls each cell (N,) by its class probabilities (N,C).

    Probabilities are weighed by the taxonomy's priors, and classes that it takes for one type are summed. Then the
    likeliest type; where it has not its `threshold`, the likeliest parent that has its own (band or segmented, but
    surely a neutrophil): a parent's probability is the sum of its children's. A parent of all types says nothing.
    `unidentified` where nothing is sure enough, with the likeliest type's probability. Second comes the likeliest type
    that the name does not cover: of an unidentified cell, the likeliest of all.

    All of it is float64, so that a cell's name hangs neither on a processor nor on other cells.
    """
    types = list(dict.fromkeys(taxonomy.resolve(c) for c in classes))
    aliases = np.array([[taxonomy.resolve(c) == t for t in types] for c in classes], np.float64)
    weighed = probabilities.astype(np.float64) * np.array([taxonomy.prior(c) for c in classes])
    chances: Chances = weighed / _sums(weighed) @ aliases.reshape(len(classes), len(types))
    names, scores = np.array(types, object)[chances.argmax(1)], chances.max(1)
    unsure = scores < _lowest(threshold, types, taxonomy)[chances.argmax(1)]
    names[unsure] = UNIDENTIFIED
    parents = sorted({p for p in (taxonomy.cell_type(t).parent for t in types) if p is not None})
    covers = label_matrix(taxonomy, types, parents).astype(np.float64)
    covers[covers.all(1)] = 0
    if parents:
        sums = chances @ covers.T
        sums = np.where(sums >= _lowest(threshold, parents, taxonomy), sums, -1)
        coarse = unsure & (sums.max(1) >= 0)
        names[coarse] = np.array(parents, object)[sums.argmax(1)[coarse]]
        scores = np.where(coarse, sums.max(1), scores)
    seconds, second_scores = _seconds(chances, types, names, taxonomy)
    return CellNames(names, scores.astype(np.float32), seconds, second_scores)


def names_given(classes: Sequence[str], taxonomy: Taxonomy, threshold: Threshold) -> set[str]:
    """All types that `name_cells` may call a cell, beside `unidentified`."""
    types = {taxonomy.resolve(c) for c in classes}
    parents = {p for t in types if (p := taxonomy.cell_type(t).parent) is not None}
    says_nothing = {p for p in parents if all(taxonomy.is_a(t, p) for t in types)}
    names = sorted(types | parents - says_nothing)
    return {name for name, lowest in zip(names, _lowest(threshold, names, taxonomy), strict=True) if lowest <= 1}


def _lowest(threshold: Threshold, names: Sequence[str], taxonomy: Taxonomy) -> Chances:
    """The lowest probability by which each of the names (N,) is given; infinite where it is not given at all."""
    if not isinstance(threshold, dict):
        return np.full(len(names), threshold)
    every: dict[str, float] = {}
    for name, score in threshold.items():
        if taxonomy.knows(name):  # as another taxonomy may call several of them by one name, the highest holds
            every[taxonomy.resolve(name)] = max(score, every.get(taxonomy.resolve(name), 0))
    return np.array([every.get(name, np.inf) for name in names], np.float64)


def _sums(weighed: Chances) -> Chances:
    """The sum of each row as a column, 1 where a row has none."""
    sums = weighed.sum(1, keepdims=True)
    return np.where(sums > 0, sums, 1.0)


def _seconds(
    chances: Chances, types: Sequence[str], names: NDArray[np.object_], taxonomy: Taxonomy
) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
    """The likeliest of the types (N,C) that a cell's name (N,) does not cover, and its probability; None and NaN."""
    left = chances.copy()
    for name in set(names):
        covered = np.array([taxonomy.is_a(t, name) for t in types])
        left[np.ix_(names == name, covered)] = -1
    second_scores = left.max(1)
    is_none = second_scores < 0
    second_types = np.array(types, object)[left.argmax(1)]
    second_types[is_none] = None
    return second_types, np.where(is_none, np.nan, second_scores).astype(np.float32)
