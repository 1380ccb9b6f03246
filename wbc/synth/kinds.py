"""How each kind of white cell looks: size, nucleus, colours and granules, as a table of recipes.

Sizes are those of haematology's textbooks; densities and grain were measured on May-Grünwald-Giemsa smears.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Density = tuple[float, float, float]
Discs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Granules:
    """Granules of a cytoplasm: `per_um2` of them, each of `radius_um`, of optical density `density`."""

    per_um2: float
    radius_um: float
    density: Density
    over_nucleus: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kind of white cell looks. Densities are natural optical density in R, G, B.

    `diameter_um` is mean and standard deviation. `nucleus` draws discs, float (N,3) of y, x, radius in cell radii:
    their union is the nucleus. `chromatin` is its dense net, `chromatin_gap` the pale between, of grain `gap_um`
    (sigma) and `gap_share` of its area. `roughness` and `ruffle_um` are how far the outline strays from a circle, in
    waves (of the radius) and in frills (µm); `rim` and `mottle` how much darker the cytoplasm is at its edge and how
    much it varies; `vacuoles` is their mean number.
    """

    diameter_um: tuple[float, float]
    nucleus: Callable[[np.random.Generator], Discs]
    cytoplasm: Density
    granules: Granules
    chromatin: Density = (1.30, 2.12, 0.43)
    chromatin_gap: Density = (0.45, 0.62, 0.20)
    gap_um: float = 0.16
    gap_share: float = 0.15
    roughness: float = 0.025
    ruffle_um: float = 0.03
    rim: float = 0.2
    mottle: float = 0.09
    vacuoles: float = 0.0


def _rotated(discs: Discs, rng: np.random.Generator) -> Discs:
    angle = rng.uniform(0, 2 * math.pi)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.concatenate([discs[:, :2] @ turn, discs[:, 2:]], 1)


def _arc(bend: float, span: float, thickness: float, shift: float, rng: np.random.Generator) -> Discs:
    """A bent sausage: discs of even radius `thickness` along `span` radians of a circle of radius `bend`."""
    t = np.linspace(-span / 2, span / 2, 24)
    wobble = 1 + 0.08 * np.sin(rng.uniform(1, 3) * t + rng.uniform(0, 6))
    y, x = bend * np.sin(t) * wobble, bend * np.cos(t) * wobble
    return _rotated(np.stack([y, x - x.mean() + rng.normal(0, shift), thickness * (2 - wobble)], 1), rng)


def _lobes(counts: tuple[int, ...], size: float, rng: np.random.Generator) -> Discs:
    """Lobes along a bent line, thin strands between neighbours."""
    n = int(rng.choice(counts))
    radii = rng.uniform(0.88, 1.12, n) * size * (3 / n) ** 0.35
    span = {2: rng.uniform(2.2, 3.0), 3: rng.uniform(3.0, 4.2)}.get(n, rng.uniform(4.2, 5.2))
    angles = np.linspace(-span / 2, span / 2, n) + rng.normal(0, 0.12, n)
    reach = np.clip(rng.normal(0.47, 0.04, n), radii, 0.93 - radii)
    centres = np.stack([reach * np.sin(angles), reach * np.cos(angles)], 1)
    parts = []
    for centre, radius, angle in zip(centres, radii, angles, strict=True):
        lean = angle + rng.normal(0, 0.5)
        along = np.linspace(-1, 1, 5)[:, None] * np.array([math.cos(lean), -math.sin(lean)]) * radius * 0.4
        parts.append(np.concatenate([centre + along, np.full((5, 1), radius * rng.uniform(0.82, 0.95))], 1))
    for start, stop in pairwise(centres):
        t = np.linspace(0, 1, 12)[:, None]
        parts.append(np.concatenate([start + t * (stop - start), np.full((12, 1), rng.uniform(0.04, 0.1))], 1))
    return _rotated(np.concatenate(parts), rng)


def _round(size: float, stretch: float, shift: float, rng: np.random.Generator) -> Discs:
    """An oval of half-axis `size`, `stretch` as long again, off the cell's centre by `shift` at most."""
    t = np.linspace(-1, 1, 7) * size * stretch
    discs = np.stack(
        [t, np.full(7, rng.uniform(0, shift)), size * (1 - 0.25 * stretch * np.linspace(-1, 1, 7) ** 2)], 1
    )
    return _rotated(discs, rng)


def _indented(rng: np.random.Generator) -> Discs:
    """A monocyte's nucleus: kidney, horseshoe or folded loaf."""
    span = rng.uniform(1.9, 4.2)
    return _arc(rng.uniform(0.38, 0.45), span, rng.uniform(0.4, 0.46) - 0.05 * max(span - 2.2, 0), 0.07, rng)


RECIPES: dict[str, Recipe] = {
    "segmented_neutrophil": Recipe(
        (14.2, 0.8),
        lambda r: _lobes((2, 3, 3, 3, 4, 4, 5), 0.31, r),
        (0.16, 0.25, 0.11),
        Granules(3.5, 0.14, (0.40, 0.72, 0.27)),
    ),
    "band_neutrophil": Recipe(
        (14.4, 0.8),
        lambda r: _arc(r.uniform(0.42, 0.5), r.uniform(3.0, 4.3), r.uniform(0.23, 0.28), 0.05, r),
        (0.18, 0.28, 0.11),
        Granules(3.5, 0.14, (0.42, 0.74, 0.27)),
    ),
    "metamyelocyte": Recipe(
        (14.2, 0.9),
        lambda r: _arc(r.uniform(0.36, 0.44), r.uniform(1.9, 2.6), r.uniform(0.37, 0.43), 0.08, r),
        (0.32, 0.42, 0.14),
        Granules(5.0, 0.14, (0.72, 1.15, 0.31)),
        chromatin=(1.25, 2.05, 0.43),
        gap_um=0.15,
        gap_share=0.2,
    ),
    "myelocyte": Recipe(
        (14.5, 0.9),
        lambda r: _round(r.uniform(0.58, 0.65), r.uniform(0.1, 0.25), 0.3, r),
        (0.34, 0.43, 0.14),
        Granules(5.0, 0.15, (0.85, 1.45, 0.34)),
        chromatin=(1.21, 2.02, 0.43),
        gap_um=0.14,
        gap_share=0.24,
        mottle=0.14,
    ),
    "promyelocyte": Recipe(
        (16.8, 1.0),
        lambda r: _round(r.uniform(0.62, 0.7), r.uniform(0.08, 0.2), 0.24, r),
        (0.44, 0.52, 0.15),
        Granules(5.0, 0.17, (1.0, 1.9, 0.39), over_nucleus=True),
        chromatin=(1.2, 2.05, 0.43),
        gap_um=0.14,
        gap_share=0.32,
        rim=0.4,
        mottle=0.14,
    ),
    "eosinophil": Recipe(
        (14.6, 0.8),
        lambda r: _lobes((2, 2, 2, 3), 0.31, r),
        (0.26, 0.47, 0.20),
        Granules(4.5, 0.22, (0.52, 1.15, 0.48)),
        gap_share=0.2,
        rim=0.1,
    ),
    "basophil": Recipe(
        (13.2, 0.8),
        lambda r: _lobes((2, 3), 0.38, r),
        (0.22, 0.36, 0.11),
        Granules(3.4, 0.28, (1.36, 2.35, 0.50), over_nucleus=True),
        chromatin=(1.1, 1.7, 0.42),
        gap_share=0.35,
        roughness=0.035,
        ruffle_um=0.16,
        rim=0.3,
    ),
    "lymphocyte": Recipe(
        (10.8, 0.9),
        lambda r: _round(r.uniform(0.88, 0.94), r.uniform(0.03, 0.1), 0.15, r),
        (0.60, 0.68, 0.18),
        Granules(0.3, 0.15, (0.8, 1.1, 0.3)),
        chromatin=(1.28, 2.1, 0.48),
        chromatin_gap=(0.95, 1.40, 0.37),
        gap_share=0.3,
        roughness=0.035,
        ruffle_um=0.12,
        rim=0.5,
        mottle=0.22,
    ),
    "monocyte": Recipe(
        (17.2, 1.4),
        _indented,
        (0.47, 0.54, 0.15),
        Granules(0.1, 0.13, (0.8, 1.15, 0.31)),
        chromatin=(1.18, 2.12, 0.41),
        chromatin_gap=(0.58, 0.82, 0.22),
        gap_um=0.12,
        gap_share=0.45,
        roughness=0.08,
        ruffle_um=0.06,
        rim=0.1,
        mottle=0.12,
        vacuoles=12.0,
    ),
    "erythroblast": Recipe(
        (10.0, 0.8),
        lambda r: _round(r.uniform(0.54, 0.64), r.uniform(0.0, 0.1), 0.22, r),
        (0.45, 0.54, 0.18),
        Granules(0.2, 0.15, (0.7, 0.9, 0.28)),
        chromatin=(1.38, 2.02, 0.50),
        gap_share=0.1,
        roughness=0.035,
        rim=0.3,
    ),
}
