"""How a laboratory's pictures look, whatever cells they show, and how far a slide's look is from those known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from wbc.cells.crop import DENSITIES, GROUND_PERCENT

N_FACTS = 29
LOOKS = "known_looks"
MOST_CELLS = 600  # of a laboratory are kept
SETS, SLIDE_CELLS = 200, 50
LEAST_SPREAD = 1e-3
UNSEEN = 1.3  # how much farther the cells of a laboratory go than the few of it that are known
NEIGHBOURS = 3
FEWEST_CELLS = 2 * NEIGHBOURS
CELL, SURROUNDINGS = 0.3, 0.55  # of half a side: within is surely the cell, beyond mostly red cells and background
CLEAR = 0.05  # a hue of less density than this is none


def appearance(crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What light, stain and focus make of crops uint8 (N,S,S,3) about a cell: float32 (N,N_FACTS).

    In optical densities (Beer-Lambert): the background (3); the cell's quartile, middle and darkest tenth (9); the
    surroundings' middle and darkest sixth (6); the colours' covariance (6); how sharp edges are, on the whole and at
    the sharpest (2, logarithms); hues of the surroundings (3). Hues are unit vectors, doubled so that they weigh.
    """
    n = len(crops)
    if not n:
        return np.zeros((0, N_FACTS), np.float32)
    density = DENSITIES[crops[:, ::2, ::2]]
    ground = np.percentile(density, GROUND_PERCENT, axis=(1, 2))
    density = density - ground[:, None, None].astype(np.float32)
    y, x = np.mgrid[-1 : 1 : density.shape[1] * 1j, -1 : 1 : density.shape[2] * 1j]
    cell, around = density[:, x**2 + y**2 < CELL**2], density[:, x**2 + y**2 > SURROUNDINGS**2]
    of_cell = np.percentile(cell, (25, 50, 90), axis=1).transpose(1, 0, 2).reshape(n, -1)
    of_surroundings = np.percentile(around, (50, 85), axis=1).transpose(1, 0, 2).reshape(n, -1)
    spread = np.stack([np.cov(d.reshape(-1, 3).T)[np.triu_indices(3)] for d in density])
    parts = [
        ground,
        of_cell,
        of_surroundings,
        np.sign(spread) * np.sqrt(np.abs(spread)),
        _sharpness(density.mean(3)),
        2 * _hue(of_surroundings[:, 3:]),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _sharpness(grey: NDArray[np.float32]) -> NDArray[np.float64]:
    middle = grey[:, 1:-1, 1:-1]
    beside = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    edges = np.abs(4 * middle - beside).reshape(len(grey), -1)
    return np.log(np.stack([edges.mean(1), np.percentile(edges, 99, axis=1)], 1) + 1e-3)


def _hue(densities: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(densities / np.linalg.norm(densities, axis=1, keepdims=True).clip(min=CLEAR))


def _large(laboratories: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """The laboratories with SLIDE_CELLS cells and more; the others as one, with the first of those if need be."""
    large = [looks for looks in laboratories if len(looks) >= SLIDE_CELLS]
    small = [looks for looks in laboratories if len(looks) < SLIDE_CELLS]
    if sum(map(len, small)) < SLIDE_CELLS and large:
        return [np.concatenate([large[0], *small]), *large[1:]]
    pooled = np.concatenate(small) if small else None
    if pooled is not None and not large and len(pooled) < FEWEST_CELLS:
        raise ValueError(f"{len(pooled)} cells are too few to learn from: {FEWEST_CELLS} are needed")
    return large if pooled is None else [*large, pooled]


@dataclass(frozen=True, slots=True, eq=False)
class KnownLooks:
    """Cells of the laboratories that a classifier has learnt from, by their `appearance` float32 (M,F).

    `spread` (F,) is how much each number varies within a laboratory. Half of a known laboratory's cells are nearer than
    `limit`, whichever slide they are from; a slide whose middle cell is farther is a stranger's.
    """

    looks: NDArray[np.float32]
    spread: NDArray[np.float32]
    limit: float

    @staticmethod
    def of(laboratories: Sequence[NDArray[np.float32]], seed: int = 0) -> "KnownLooks":
        """What to know of laboratories, each by the appearance (N,F) of its cells: up to MOST_CELLS of each.

        The limit is the largest that sets of SLIDE_CELLS cells of one laboratory come to, measured against the other
        half of its cells and all others', but for the outermost percent. Those that show fewer than SLIDE_CELLS cells
        count as one. Raises ValueError for fewer than FEWEST_CELLS cells in all.
        """
        laboratories = _large(laboratories)
        rng = np.random.default_rng(seed)
        spread = np.mean([looks.std(0) for looks in laboratories], axis=0) + LEAST_SPREAD
        orders = [rng.permutation(len(looks)) for looks in laboratories]
        halves = [(looks[o[::2]], looks[o[1::2]]) for looks, o in zip(laboratories, orders, strict=True)]
        half = KnownLooks(np.concatenate([a[:MOST_CELLS] for a, _ in halves]), spread, np.inf)
        middles = [
            np.median(half.distance(b)[rng.integers(len(b), size=(SETS, SLIDE_CELLS))], axis=1) for _, b in halves
        ]
        limit = max(float(np.percentile(m, 99)) for m in middles)
        every = [looks[o[:MOST_CELLS]] for looks, o in zip(laboratories, orders, strict=True)]
        return KnownLooks(np.concatenate(every), spread, limit)

    def including(self, looks: NDArray[np.float32]) -> "KnownLooks":
        """What is known once a laboratory is that shows cells of this appearance (N,F).

        The limit grows to what its own cells come to, each measured without itself, and by as much again as few cells
        leave unseen.
        """
        every = KnownLooks(np.concatenate([self.looks, looks[:MOST_CELLS]]), self.spread, self.limit)
        apart = np.asarray(cKDTree(every.looks / self.spread).query(looks / self.spread, k=NEIGHBOURS + 1)[0])
        rng = np.random.default_rng(0)
        middles = np.median(apart[:, 1:].mean(1)[rng.integers(len(looks), size=(SETS, SLIDE_CELLS))], axis=1)
        return KnownLooks(every.looks, self.spread, max(self.limit, UNSEEN * float(np.percentile(middles, 99))))

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.float32]]) -> "KnownLooks | None":
        """What `arrays` made, as a model has it beside its weights; None where it has none."""
        if LOOKS not in arrays:
            return None
        spread, (limit,) = arrays[f"{LOOKS}_spread"], arrays[f"{LOOKS}_limit"]
        return KnownLooks(arrays[LOOKS], spread, float(limit))

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The same as arrays by name, to be stored beside a model's weights."""
        limit = np.array([self.limit], np.float32)
        return {LOOKS: self.looks, f"{LOOKS}_spread": self.spread, f"{LOOKS}_limit": limit}

    def distance(self, looks: NDArray[np.float32]) -> NDArray[np.float32]:
        """How far the appearance (N,F) of cells is from the nearest known ones: float32 (N,), in spreads."""
        tree = cKDTree(self.looks / self.spread)
        apart = np.asarray(tree.query(looks / self.spread, k=NEIGHBOURS)[0])
        return np.asarray(apart.mean(1).astype(np.float32))
