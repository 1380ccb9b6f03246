"""How far a figure would move had other fields been looked at: the bootstrap, over fields or single cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Weights = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NoiseSettings:
    """How often fields are drawn anew, with replacement and within each set; limits hold `level` of the draws."""

    resamples: int = 1000
    level: float = 0.95
    seed: int = 0


def draw(units: Mapping[str, int], settings: NoiseSettings) -> dict[str, Weights]:
    """How often each of a set's units is drawn, int64 (resamples, units), by set. Two figures with one draw are paired.

    A draw hangs on the set's name and number of units alone.
    """
    drawn = {}
    for name, n in units.items():
        rng = np.random.default_rng([settings.seed, *name.encode()])
        drawn[name] = rng.multinomial(n, np.full(n, 1 / n), settings.resamples) if n else np.zeros((0, 0), np.int64)
    return drawn


def limits(values: NDArray[np.float64], settings: NoiseSettings) -> tuple[float, float]:
    """The limits that hold `level` of a figure's draws (R,); draws without a figure, NaN, are passed over."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    tail = (1 - settings.level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """N true cells and whether a model told each right: `kinds` (N,), `right` bool (N,), `units` int64 (N,).

    A unit is the field that a cell is in, by its number among `n_units`, or the cell itself.
    """

    kinds: NDArray[np.object_]
    right: NDArray[np.bool_]
    units: NDArray[np.int64]
    n_units: int

    def present(self) -> tuple[str, ...]:
        """The kinds that there are cells of, sorted."""
        return tuple(sorted(set(self.kinds.tolist())))

    def sensitivities(self, kinds: Sequence[str], weights: Weights) -> NDArray[np.float64]:
        """The part of each kind's cells that was told right (R,K), by draws (R,units); NaN where a draw has none."""
        columns = []
        for kind in kinds:
            own = self.kinds == kind
            n = weights @ np.bincount(self.units[own], minlength=self.n_units)
            hits = weights @ np.bincount(self.units[own & self.right], minlength=self.n_units)
            columns.append(np.divide(hits, n, out=np.full(len(n), np.nan), where=n > 0))
        return np.stack(columns, 1) if columns else np.zeros((len(weights), 0))


def whole(n_units: int) -> Weights:
    """The draw that has every unit once: (1,units)."""
    return np.ones((1, n_units), np.int64)


def mean_over_kinds(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the kinds (R,K) that a draw has; NaN where it has none."""
    defined = np.isfinite(values)
    n = defined.sum(1)
    sums = np.where(defined, values, 0).sum(1)
    return np.asarray(np.divide(sums, n, out=np.full(len(values), np.nan), where=n > 0))


def fall_by_chance(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float:
    """How likely at least as many of N cells are lost where two models are alike: the sign test of those that differ.

    Source: McNemar, Psychometrika 12:153, 1947, exact and one-sided.
    """
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    return 1.0 if lost + gained == 0 else float(binomtest(lost, lost + gained, 0.5, alternative="greater").pvalue)
