"""A new last layer for frozen features, from a few named cells: regularised towards the old one, judged on cells held
out. Arrays in, arrays out.

Cells of the same laboratory that nobody named teach, too: what the layer is sure of it takes for their names, and
learns again (self-training; Lee 2013, "Pseudo-label").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp, softmax

Floats = NDArray[np.float64]

# How dearly a step away from the old last layer is paid for, from dearest to cheapest; the held out cells choose.
STRENGTHS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
FOLDS = 5
# Directions of the features, those of most variance, in which the new layer may differ: all of them up to 128 cells.
DIRECTIONS = 256
STEPS = 100
# A feature that hardly differs between the named cells is scaled as if it differed by this part of a common one.
LEAST_SPREAD = 0.3
# Of cells without names: how sure of one it must be to be learnt from, how often this is done over, and how much less
# dearly a step away from the old layer is paid for then, as there are more cells to learn from.
SURE, ROUNDS, CHEAPER = 0.8, 3, 10.0


@dataclass(frozen=True, slots=True, eq=False)
class LastLayer:
    """Logits = features @ weight.T + bias: `weight` float (C,F), `bias` float (C,)."""

    weight: Floats
    bias: Floats

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """Logits (…,C) of features (…,F)."""
        return np.asarray(features @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class NamedCells:
    """Cells with names: `features` float (N,V,F) of V views of each, `covers` (N,C) the classes that its name covers.

    `names` are N, coarse or not; a coarse name covers several classes. A cell's probabilities are means over its views.
    `groups` are widths that sum up to F, of features that weigh as much together as those of any other group; all are
    one group where none are told. `unnamed` are features (M,V,F) of other cells of the same laboratory, None of none.
    """

    features: NDArray[np.floating]
    covers: NDArray[np.bool_]
    names: tuple[str, ...]
    groups: tuple[int, ...] = ()
    unnamed: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        n = len(self.names)
        if self.features.ndim != 3 or self.covers.ndim != 2 or not len(self.features) == len(self.covers) == n:
            raise ValueError(f"{n} names, features {self.features.shape}, covers {self.covers.shape}")
        if not self.covers.any(1).all():
            raise ValueError("a name covers no class")
        if self.groups and sum(self.groups) != self.features.shape[2]:
            raise ValueError(f"groups of {self.groups} features, {self.features.shape[2]} in all")
        if self.others.shape[1:] != self.features.shape[1:]:
            raise ValueError(f"features {self.features.shape} of named cells, {self.others.shape} of others")

    @property
    def others(self) -> NDArray[np.floating]:
        """The features (M,V,F) of the cells without names."""
        return self.features[:0] if self.unnamed is None else self.unnamed

    @property
    def widths(self) -> NDArray[np.int64]:
        """The width of each feature's group (F,)."""
        groups = self.groups or (self.features.shape[2],)
        return np.repeat(groups, groups)


@dataclass(frozen=True, slots=True, eq=False)
class Gain:
    """What a new last layer is worth on cells that it was not fitted on, whose names cover classes (N,C).

    `chances_before` and `chances` are their class probabilities (N,C), `strength` is the one by which a layer is best
    fitted to all of them.
    """

    covers: NDArray[np.bool_]
    chances_before: Floats
    chances: Floats
    strength: float

    @property
    def before(self) -> NDArray[np.bool_]:
        """Whether each cell was right before (N,)."""
        return is_right(self.chances_before, self.covers)

    @property
    def after(self) -> NDArray[np.bool_]:
        """Whether each cell is right after (N,)."""
        return is_right(self.chances, self.covers)

    @property
    def pays(self) -> bool:
        """Whether more cells are right, or as many and the names likelier."""
        before, after = int(self.before.sum()), int(self.after.sum())
        loss_before, loss = (_losses(c, self.covers).mean() for c in (self.chances_before, self.chances))
        return after > before or bool(after == before and loss < loss_before)


def fit(cells: NamedCells, prior: LastLayer, strength: float) -> LastLayer:
    """The last layer that makes the names likely and stays near `prior`.

    It is the minimum of the mean of -log p(name) over cells and views, plus strength / 2 |D|², with D the difference of
    weight and bias from the prior's in features that are standardised on these cells, so that each group of them weighs
    alike, and then a mean square of 1 long: what hardly varies at a laboratory weighs as much as what does. Where there
    are cells without names it is fitted ROUNDS times more: each of them that it gives SURE to a name, or to a class
    that no name covers, counts as named so, all of them as much as all that have names, at strength / CHEAPER. Without
    named cells it is the prior.
    """
    if not cells.names:
        return prior
    problem = _Problem.of(cells, prior)
    every = np.arange(len(cells.names))
    return problem.last_layer(problem.with_others(every, problem.fit(every, (strength,))[0], strength))


def cross_validate(cells: NamedCells, prior: LastLayer) -> Gain:
    """What teaching gains on cells held out, and the strength that is the best for them.

    Each cell is held out once, in one of FOLDS parts that share every kind evenly. For the gain, the strength of a part
    is the one that is best for the others. Strengths are chosen without the cells that have no names. Raises ValueError
    for fewer than two named cells.
    """
    problem, n = _Problem.of(cells, prior), len(cells.names)
    parts = [(np.setdiff1d(np.arange(n), held_out), held_out) for held_out in folds(cells.names)]
    fits = [problem.fit(taught, STRENGTHS) for taught, _ in parts]
    losses = np.zeros((len(STRENGTHS), n))
    for (_, held_out), steps in zip(parts, fits, strict=True):
        chances = [problem.probabilities(held_out, step) for step in steps]
        losses[:, held_out] = [_losses(of_strength, cells.covers[held_out]) for of_strength in chances]
    before, after = problem.probabilities(np.arange(n), problem.nothing), np.zeros(cells.covers.shape)
    for (taught, held_out), steps in zip(parts, fits, strict=True):
        best = (losses.sum(1) - losses[:, held_out].sum(1)).argmin()
        step = problem.with_others(taught, steps[best], STRENGTHS[best])
        after[held_out] = problem.probabilities(held_out, step)
    return Gain(cells.covers, before, after, STRENGTHS[losses.sum(1).argmin()])


def is_right(probabilities: NDArray[np.floating], covers: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each cell's likeliest class (N,C) is one that its name covers (N,)."""
    return np.asarray(covers[np.arange(len(covers)), probabilities.argmax(1)])


def spread(features: NDArray[np.floating]) -> Floats:
    """How much each feature of rows (N,F) differs: its standard deviation (F,), at least LEAST_SPREAD of the median."""
    deviations = features.std(0)
    return np.asarray(np.maximum(deviations, LEAST_SPREAD * np.median(deviations)).clip(min=1e-6), np.float64)


def folds(names: Sequence[str], n: int = FOLDS) -> list[NDArray[np.int64]]:
    """The indices of cells in `n` parts, or as many as there are cells, each kind spread evenly; always the same.

    Raises ValueError for fewer than two cells: nothing could be learnt while something is held out.
    """
    if len(names) < 2:
        raise ValueError(f"{len(names)} cells cannot be held out from each other")
    rng = np.random.default_rng(0)
    order: list[int] = []
    for name in sorted(set(names)):
        order += rng.permutation([i for i, other in enumerate(names) if other == name]).tolist()
    n = min(n, len(names))
    return [np.sort(np.array(order[start::n], np.int64)) for start in range(n)]


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """A fit in the directions that the cells span, where it is the same and much smaller.

    `reduced` (N+M,V,R) are the features less `mean` (F,), divided by `scale` (F,), with a one for the bias, along
    `directions` (R,F+1); `old` (N+M,V,C) are the prior's logits. The first N, whose classes `covers` (N,C) tells,
    have names. A step away from the prior is (C,R).
    """

    reduced: Floats
    old: Floats
    covers: NDArray[np.bool_]
    directions: Floats
    mean: Floats
    scale: Floats
    prior: LastLayer

    @staticmethod
    def of(cells: NamedCells, prior: LastLayer) -> "_Problem":
        features = np.concatenate([cells.features, cells.others])
        n, views, width = features.shape
        rows = features.reshape(n * views, width).astype(np.float64)
        mean, scale = rows.mean(0), spread(rows) * np.sqrt(cells.widths * max(1, len(cells.groups)))
        rows = np.concatenate([(rows - mean) / scale, np.ones((len(rows), 1))], 1)
        directions = np.linalg.svd(rows, full_matrices=False)[2][:DIRECTIONS]
        reduced = (rows @ directions.T).reshape(n, views, -1)
        return _Problem(reduced, prior.logits(features), cells.covers, directions, mean, scale, prior)

    @property
    def nothing(self) -> Floats:
        """The step that leaves the prior as it is."""
        return np.zeros((self.covers.shape[1], len(self.directions)))

    def fit(self, which: NDArray[np.int64], strengths: Sequence[float]) -> list[Floats]:
        """The best step by the named cells `which` at each strength; each begins where the last one ended."""
        rows, steps = self._rows(which, self.covers[which]), [self.nothing]
        for strength in strengths:
            steps.append(_best([rows], steps[-1], strength))
        return steps[1:]

    def with_others(self, which: NDArray[np.int64], step: Floats, strength: float) -> Floats:
        """What becomes of a step by the named cells `which` where the cells without names teach, too."""
        others = np.arange(len(self.covers), len(self.old))
        names = np.unique(self.covers[which], axis=0)
        answers = np.concatenate([names, np.eye(names.shape[1], dtype=bool)[~names.any(0)]])
        for _ in range(ROUNDS if len(others) else 0):
            chances = self.probabilities(others, step) @ answers.T
            sure = chances.max(1) >= SURE
            if not sure.any():
                break
            guessed = self._rows(others[sure], answers[chances.argmax(1)[sure]])
            step = _best([self._rows(which, self.covers[which]), guessed], step, strength / CHEAPER)
        return step

    def probabilities(self, which: NDArray[np.int64], step: Floats) -> Floats:
        """Class probabilities (N,C) of the cells `which` after a step."""
        return np.asarray(softmax(self.old[which] + self.reduced[which] @ step.T, axis=2).mean(1))

    def last_layer(self, step: Floats) -> LastLayer:
        """The prior after a step."""
        away = step @ self.directions
        weight = away[:, :-1] / self.scale
        return LastLayer(self.prior.weight + weight, self.prior.bias + away[:, -1] - weight @ self.mean)

    def _rows(self, which: NDArray[np.int64], covers: NDArray[np.bool_]) -> "_Rows":
        """All views of some cells whose names cover classes (N,C)."""
        views, n_classes = self.old.shape[1:]
        x, old = self.reduced[which].reshape(-1, len(self.directions)), self.old[which].reshape(-1, n_classes)
        return _Rows(x, old, np.where(np.repeat(covers, views, 0), 0.0, -np.inf))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows `x` (M,R) with the prior's logits `old` (M,C), and 0 (M,C) for the classes of their names, else -inf."""

    x: Floats
    old: Floats
    uncovered: Floats

    def cost(self, away: Floats) -> tuple[float, Floats]:
        """The mean of -log p(name) after a step `away` (C,R), and its slope."""
        log_p = log_softmax(self.old + self.x @ away.T, axis=1)
        log_name = logsumexp(log_p + self.uncovered, axis=1)
        slope = (np.exp(log_p) - np.exp(log_p + self.uncovered - log_name[:, None])).T @ self.x / len(self.x)
        return float(-log_name.mean()), slope


def _best(parts: Sequence[_Rows], start: Floats, strength: float) -> Floats:
    """The step that makes small the sum of the parts' costs and strength / 2 of its square, found from `start`."""

    def cost(flat: Floats) -> tuple[float, Floats]:
        away = flat.reshape(start.shape)
        costs, slopes = zip(*(part.cost(away) for part in parts), strict=True)
        return sum(costs) + strength / 2 * float(flat @ flat), (sum(slopes) + strength * away).ravel()

    found = minimize(cost, start.ravel(), method="L-BFGS-B", jac=True, options={"maxiter": STEPS})
    return np.asarray(found.x.reshape(start.shape))


def _losses(probabilities: Floats, covers: NDArray[np.bool_]) -> Floats:
    """-log of the probability of each cell's name (N,)."""
    return np.asarray(-np.log((probabilities * covers).sum(1).clip(min=1e-12)))
