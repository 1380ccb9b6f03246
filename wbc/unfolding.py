"""Counts of named cells + how cells were misnamed elsewhere -> the shares that the kinds really have, with limits.

A Bayesian unfolding, by Gibbs sampling. Unknown are the shares π of the kinds, and the chances A[kind, name] of this
laboratory, which is none of those that were measured. Given both, each named cell is of some kind with a probability
that is in proportion to π A; given the kinds, π and the rows of A are Dirichlet again. Rows begin from what
laboratories have in common, spread as widely as they differ from each other.

Sources: D'Agostini, Nucl Instrum Methods A 362:487, 1995 (unfolding); Tanner and Wong, J Am Stat Assoc 82:528, 1987
(data augmentation); Rao and Scott, J Am Stat Assoc 76:221, 1981 (design effect).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaln

Floats = NDArray[np.float64]

MIN_CELLS = 10
MIN_LABORATORIES = 2
_SEED = 20261125
_ALPHA = 0.05
_CHAINS, _BURN_IN, _KEPT = 128, 15, 25
_RESAMPLES = 200
_HALVINGS = 30
# A laboratory's row of a kind weighs as much as this many cells at most: more cells tell no more of other laboratories.
_CELLS_A_LABORATORY = 5.0
# So many cells' weight has the belief that a kind is named as kinds are on average.
_CELLS_OF_BELIEF = 4.0
# And so much of a cell has what no laboratory has shown yet, spread evenly over the names.
_CELLS_OF_SURPRISE = 0.6
# The pseudo-cells from which the shares begin: few of each kind, as most slides lack some, and some as cells are named.
_CELLS_A_KIND = 0.05
_CELLS_OF_NAMES = 1.0
# How alike laboratories may be, as the sum of a Dirichlet: from "anything goes" to "as one".
_CONCENTRATIONS = np.geomspace(0.5, 200, 24)
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """How cells of known kinds were named: `counts` (laboratories, K, K+1), by true kind and by name.

    They are of cells, or of what unlike cells are worth. Names are the kinds in their order, and last `unidentified`.
    `own` (K, K+1) is of the laboratory that counts itself, None where nothing is known of it. Raises ValueError where
    shapes do not agree or a count is negative.
    """

    kinds: tuple[str, ...]
    counts: Floats
    own: Floats | None = None

    def __post_init__(self) -> None:
        shape, own = (len(self.kinds), len(self.kinds) + 1), self.counts[:0] if self.own is None else self.own[None]
        if self.counts.shape[1:] != shape or own.shape[1:] != shape:
            raise ValueError(f"{len(self.kinds)} kinds, counts {self.counts.shape}, own {own.shape}")
        if (self.counts < 0).any() or (own < 0).any():
            raise ValueError("a count is negative")

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Which kinds (K,) enough is known of: ten cells, where two laboratories were measured, or ten of the own one.

        A kind that only one of them has is taken to vary between laboratories as the others do.
        """
        vary = (self.counts.sum((1, 2)) >= MIN_CELLS).sum() >= MIN_LABORATORIES
        elsewhere = vary & (self.counts.sum((0, 2)) >= MIN_CELLS)
        return np.asarray(elsewhere if self.own is None else elsewhere | (self.own.sum(1) >= MIN_CELLS), bool)


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """Fractions (K,) of the counted cells that the kinds make up, with 95 % limits; the means sum to 1."""

    mean: Floats
    low: Floats
    high: Floats


def unfold(
    named: NDArray[np.int64], confusion: Confusion, counted: NDArray[np.bool_], known: NDArray[np.int64] | None = None
) -> Shares | None:
    """The shares of the kinds among cells of the `counted` ones (K,), by the names of all cells (fields, K+1).

    Beside cells that were `named` as the confusion tells there may be some whose kind is `known` (fields, K+1).

    The limits hold sampling with its clustering by field, the confusion's own uncertainty and its variation between
    laboratories. Where names are never wrong, they are Clopper and Pearson's. The same input gives the same shares.
    None where there is no counted cell.
    """
    rng, sure = np.random.default_rng(_SEED), np.zeros_like(named) if known is None else known
    kinds = (_kinds_of(named.sum(0), confusion, rng) + sure.sum(0)[:-1])[:, counted]
    total = kinds.sum(1, keepdims=True)
    if not total.sum():
        return None
    effect = design_effect(named + sure, rng)
    limits = [_limits(of_kind, total[:, 0], effect) for of_kind in kinds.T]
    shares = np.zeros((3, len(counted)))
    shares[:, counted] = kinds.sum(0) / total.sum(), *np.array(limits).T
    return Shares(*shares)


def _limits(of_kind: NDArray[np.int64], total: NDArray[np.int64], effect: float) -> tuple[float, float]:
    """Limits of a share, over draws (D,) of how many cells are of the kind and of how many in all.

    Of one draw they are Clopper and Pearson's quantiles of the beta distribution, for cells fewer by the design effect;
    of all draws, the quantiles of the mixture.
    """
    cases, times = np.unique(np.stack([of_kind, total]), axis=1, return_counts=True)
    hits, others = cases[0] / effect, (cases[1] - cases[0]) / effect
    weights = times / times.sum()
    low = _quantile(hits, others + 1, weights, _ALPHA / 2)
    # The upper limit is the lower one of the other cells' share.
    return low, 1 - _quantile(others, hits + 1, weights, _ALPHA / 2)


def _quantile(a: Floats, b: Floats, weights: Floats, level: float) -> float:
    """The quantile of a mixture of beta distributions, by halving; those with `a` = 0 lie at 0."""
    if weights[a == 0].sum() >= level:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = np.where(a == 0, 1.0, betainc(np.maximum(a, _TINY), b, middle)) @ weights
        low, high = (middle, high) if below < level else (low, middle)
    return low


def design_effect(named: NDArray[np.int64], rng: np.random.Generator) -> float:
    """How many times the variance of shares is what it were if cells did not cluster by field (fields, names).

    At least 1: the bootstrap variance over fields against the multinomial one, over all names together.
    """
    fields, total = named[named.sum(1) > 0], named.sum()
    expected = (1 - ((named.sum(0) / max(total, 1)) ** 2).sum()) / max(total, 1)
    n = len(fields)
    if n < 2 or expected <= 0:
        return 1.0
    resampled = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) @ fields
    variance = (resampled / resampled.sum(1, keepdims=True)).var(0).sum() * n / (n - 1)
    return max(1.0, float(variance / expected))


def _kinds_of(cells: NDArray[np.int64], confusion: Confusion, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws (D,K) of how many of the named cells (K+1,) are of which kind."""
    belief = _CELLS_A_KIND + _CELLS_OF_NAMES * cells[:-1] / max(cells[:-1].sum(), 1)
    rows = _rows(confusion, rng)
    chances = _normal(rng.standard_gamma(rows))
    shares: Floats = np.full(rows.shape[:2], 1 / rows.shape[1])
    for _ in range(_BURN_IN):  # from near the likeliest shares it takes fewer draws
        shares = _normal((_posterior(shares, chances) * cells[:, None]).sum(1) + belief)
    draws = []
    for _ in range(_BURN_IN + _KEPT):
        drawn = rng.multinomial(cells, _posterior(shares, chances))
        shares = _normal(rng.standard_gamma(belief + drawn.sum(1)))
        chances = _normal(rng.standard_gamma(rows + drawn.transpose(0, 2, 1)))
        draws.append(drawn.sum(1))
    return np.concatenate(draws[_BURN_IN:])


def _posterior(shares: Floats, chances: Floats) -> Floats:
    """The probability that a cell of a name is of a kind: (S, K+1, K) of shares (S,K) and chances (S,K,K+1)."""
    return _normal((shares[:, :, None] * chances).transpose(0, 2, 1))


def _rows(confusion: Confusion, rng: np.random.Generator) -> Floats:
    """Dirichlet parameters (S,K,K+1) of the rows of a laboratory that was not measured, one draw a chain."""
    every = confusion.counts if confusion.own is None else np.concatenate([confusion.counts, confusion.own[None]])
    usual = _usual(every)
    likelihood = _alikeness(confusion.counts, usual)
    concentrations = rng.choice(_CONCENTRATIONS, (_CHAINS, len(confusion.kinds)), p=likelihood)
    evidence = np.broadcast_to(_evidence(confusion.counts, usual), (_CHAINS, *usual.shape))
    rows = concentrations[:, :, None] * _normal(rng.standard_gamma(evidence)) + _CELLS_OF_SURPRISE / usual.shape[1]
    return np.asarray(rows if confusion.own is None else rows + confusion.own)


def _evidence(counts: Floats, usual: Floats) -> Floats:
    """What laboratories (L,K,K+1) tell of one more: cells (K,K+1), those of a large one counting for less."""
    weight = 1 / (1 + counts.sum(2, keepdims=True) / _CELLS_A_LABORATORY)
    return np.asarray((counts * weight).sum(0) + _CELLS_OF_BELIEF * usual)


def _usual(counts: Floats) -> Floats:
    """How a kind is named of which nothing is known (K,K+1): as kinds are on average, wrong names all alike."""
    total = counts.sum(2)
    shares = counts[total > 0] / total[total > 0][:, None]
    kind = np.nonzero(total > 0)[1]
    n = counts.shape[1]
    right = np.clip(shares[np.arange(len(kind)), kind].mean(), 0.3, 0.95) if len(kind) else 0.5
    unidentified = np.clip(shares[:, n].mean(), 0.01, 0.5) if len(kind) else 0.25
    rows = np.full((n, n + 1), max(1 - right - unidentified, 0.02) / max(n - 1, 1))
    rows[np.arange(n), np.arange(n)], rows[:, n] = right, unidentified
    return _normal(rows)


def _alikeness(counts: Floats, usual: Floats) -> Floats:
    """The probability of each concentration, by how well laboratories (L,K,K+1) foretell the one left out.

    Rows of one laboratory err together: they count as one observation, the mean over kinds.
    """
    told = np.zeros(len(_CONCENTRATIONS))
    kinds = set()
    for i, left_out in enumerate(counts):
        rest = np.delete(counts, i, 0)
        mean = _normal(_evidence(rest, usual))
        for kind in np.flatnonzero((left_out.sum(1) > 0) & (rest.sum((0, 2)) > 0)):
            told += _dirichlet_multinomial(left_out[kind], _CONCENTRATIONS[:, None] * mean[kind])
            kinds.add(kind)
    told /= max(len(kinds), 1)
    return _normal(np.exp(told - told.max()))


def _dirichlet_multinomial(counts: Floats, parameters: Floats) -> Floats:
    """The log probability (G,) of counts (J,) under each row of parameters (G,J), but for the multinomial's factor."""
    total = parameters.sum(1)
    each = gammaln(counts + parameters) - gammaln(parameters)
    return np.asarray(gammaln(total) - gammaln(total + counts.sum()) + each.sum(1))


def _normal(values: NDArray[np.floating]) -> Floats:
    """Values that sum to 1 along the last axis, none of them quite 0."""
    above = np.maximum(values, _TINY)
    return np.asarray(above / above.sum(-1, keepdims=True))
