"""How often a classifier's names are right on cells of laboratories that it has not seen, name by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wbc.taxonomy import NOT_A_WHITE_CELL, UNIDENTIFIED, Taxonomy
from wbc.types import CellNames

# A name is measured by so many cells that were called so in each of so many laboratories.
FEWEST_CELLS, FEWEST_LABORATORIES = 10, 2
# A hundred cells a laboratory hardly tell how the right part rises with the probability: a line without it is too bold.
FLATTENING = 0.5

Line = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Certainty:
    """Of each name that is measured, the part right: `right + slope * (probability - middle)`, as three numbers.

    `right` is the mean over laboratories, `middle` that of the probabilities there.
    """

    lines: Mapping[str, Line]

    def of(self, names: CellNames) -> CellNames:
        """The names with scores that say how often such a name is right, where that is measured.

        What is left is shared as before: the score of the type that comes second shrinks or grows with it.
        """
        scores, seconds = names.scores.copy(), names.second_scores.copy()
        for name, (middle, right, slope) in self.lines.items():
            which = names.types == name
            before = names.scores[which].astype(np.float64)
            scores[which] = np.clip(right + slope * (before - middle), 0, 1)
            left = np.divide(1 - scores[which], 1 - before, out=np.zeros_like(before), where=before < 1)
            seconds[which] = seconds[which] * left
        return replace(names, scores=scores, second_scores=seconds)


def certainty_of(
    named: CellNames, cell_types: Sequence[str], laboratories: Sequence[str], taxonomy: Taxonomy
) -> Certainty:
    """How often names are right, from cells (N,) of known type: each laboratory weighs alike, however many it has.

    The slope is that of least squares, drawn towards 0 by FLATTENING, and never below it: surer cells stay surer.
    """
    places, lines = np.array(laboratories, object), {}
    for name in sorted(set(named.types) - {UNIDENTIFIED, NOT_A_WHITE_CELL}):
        right = verdicts(cell_types, name, taxonomy)
        is_so = (named.types == name) & np.isfinite(right)
        told = [np.flatnonzero(is_so & (places == place)) for place in sorted(set(laboratories))]
        told = [rows for rows in told if len(rows) >= FEWEST_CELLS]
        if len(told) < FEWEST_LABORATORIES:
            continue
        rows = np.concatenate(told)
        weights = np.concatenate([np.full(len(r), 1 / len(r) / len(told)) for r in told])
        scores = named.scores[rows].astype(float)
        middle, share = float(weights @ scores), float(weights @ right[rows])
        off = scores - middle
        slope = (weights @ (off * right[rows])) / (weights @ off**2 + FLATTENING / len(told))
        lines[name] = (middle, share, max(0.0, float(slope)))
    return Certainty(lines)


def verdicts(cell_types: Sequence[str], name: str, taxonomy: Taxonomy) -> NDArray[np.float64]:
    """Whether each cell's true type (N,) is `name` or below it, 1 or 0; NaN where a type is too coarse or not known."""
    of_type = {t: _verdict(t, name, taxonomy) for t in set(cell_types)}
    return np.array([of_type[t] for t in cell_types], np.float64)


def _verdict(true: str, name: str, taxonomy: Taxonomy) -> float:
    is_known = taxonomy.knows(true)
    if is_known and taxonomy.is_a(true, name):
        return 1.0
    return 0.0 if is_known and not taxonomy.is_a(name, true) else float("nan")
