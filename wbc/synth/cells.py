"""Single cells of a rendered smear, drawn as optical density: a May-Grünwald-Giemsa stain under a 100x oil lens."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from wbc.synth.kinds import RECIPES, Density, Recipe

Floats = NDArray[np.float32]
EDGE_UM = 0.2
OUTLINE_STEPS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class DrawnCell:
    """A cell in its own square patch, its centre in the middle.

    `density` is float32 (S,S,3): natural optical density in R, G and B, below 0 in a halo; `mask` bool (S,S): the
    pixels that are the cell.
    """

    kind: str
    density: Floats
    mask: NDArray[np.bool_]

    @property
    def radius_px(self) -> float:
        """Half the longer side of the cell's own pixels."""
        return max(float(np.ptp(np.flatnonzero(self.mask.any(axis)))) + 1 for axis in (0, 1)) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A square patch: float32 (S,S) coordinates `y`, `x` in µm from its centre."""

    y: Floats
    x: Floats
    um_per_px: float

    @staticmethod
    def around(radius_um: float, um_per_px: float) -> "Canvas":
        """A patch that reaches `radius_um` from its centre on every side."""
        reach = math.ceil(radius_um / um_per_px)
        axis = (np.arange(-reach, reach + 1) * um_per_px).astype(np.float32)
        y, x = np.meshgrid(axis, axis, indexing="ij")
        return Canvas(y, x, um_per_px)

    def turned(self, angle: float) -> "Canvas":
        """The same patch, its coordinates turned by `angle` radians."""
        sin, cos = np.float32(math.sin(angle)), np.float32(math.cos(angle))
        return Canvas(self.y * cos - self.x * sin, self.y * sin + self.x * cos, self.um_per_px)

    def texture(self, grain_um: float, rng: np.random.Generator) -> Floats:
        """Noise of mean 0 and standard deviation 1 whose grains are `grain_um` wide (sigma)."""
        noise = gaussian_filter(rng.standard_normal(self.y.shape, np.float32), grain_um / self.um_per_px)
        return np.asarray(noise / noise.std(), np.float32)

    def grains(self, per_um2: float, radius_um: float, rng: np.random.Generator) -> Floats:
        """Soft dots at random places, near 1 in their middle, 0 between them."""
        sigma_px = 0.7 * radius_um / self.um_per_px
        dots = rng.poisson(per_um2 * self.um_per_px**2, self.y.shape) * rng.uniform(0.6, 1.3, self.y.shape)
        spread = gaussian_filter(dots.astype(np.float32), sigma_px) * max(2 * math.pi * sigma_px**2, 1.0)
        return np.asarray(np.clip(spread, 0, 1), np.float32)

    def depth(self, radius_um: float, elongation: float, waves: NDArray[np.float64]) -> Floats:
        """Depth in µm below a closed outline around the centre, negative outside.

        `waves` (K,3) are order, amplitude (of the radius) and phase of the outline's Fourier terms; `elongation` is the
        ratio of its axes, the long one lying along x.
        """
        y, x = self.y * np.float32(elongation**0.5), self.x * np.float32(elongation**-0.5)
        angles = np.linspace(-math.pi, math.pi, OUTLINE_STEPS)
        outline = 1 + (waves[:, 1:2] * np.cos(waves[:, :1] * angles + waves[:, 2:])).sum(0)
        position = (np.arctan2(y, x) + np.float32(math.pi)) * np.float32((OUTLINE_STEPS - 1) / (2 * math.pi))
        outline_here = outline.astype(np.float32)[np.rint(position).astype(np.intp)]
        return np.asarray(np.float32(radius_um) - np.hypot(y, x) / outline_here, np.float32)


def _waves(orders: range, amplitude: float, rng: np.random.Generator) -> NDArray[np.float64]:
    order = np.array(orders, np.float64)
    sizes = rng.normal(0, amplitude, len(order)) * (order[0] / order)
    return np.stack([order, sizes, rng.uniform(0, 2 * math.pi, len(order))], 1)


def _reach_um(radius_um: float, elongation: float, waves: NDArray[np.float64]) -> float:
    """How far an outline, with a margin for its halo, can reach from its centre."""
    return float(radius_um * elongation**0.5 * (1 + np.abs(waves[:, 1]).sum()) + 0.6)


def _coverage(depth_um: Floats) -> Floats:
    """How much of each pixel lies inside, 0 to 1, from its depth below an outline."""
    return np.asarray(np.clip(depth_um / EDGE_UM + 0.5, 0, 1), np.float32)


def _blend(under: Floats, over: Density | Floats, share: Floats) -> Floats:
    """`under` (S,S,3) with a share (S,S) of it replaced by `over`."""
    return np.asarray(under + share[..., None] * (np.asarray(over, np.float32) - under), np.float32)


def _union_depth(canvas: Canvas, discs: NDArray[np.float64], radius_um: float) -> Floats:
    """Depth in µm below the smooth union of discs given in cell radii."""
    sharpness = 5.0
    y, x, r = (discs * radius_um).astype(np.float32).T[:, :, None, None]
    total = np.exp(np.minimum(sharpness * (r - np.hypot(canvas.y - y, canvas.x - x)), 60.0)).sum(0)
    crowding = math.log(3.0)
    return np.asarray((np.log(total + 1e-30) - crowding) / sharpness, np.float32)


def _chromatin(canvas: Canvas, recipe: Recipe, depth: Floats, rng: np.random.Generator) -> Floats:
    """Density (S,S,3) of a nucleus: dense net, pale gaps, a condensed rim."""
    noise = canvas.texture(recipe.gap_um, rng)
    threshold = np.quantile(noise, 1 - recipe.gap_share)
    gap = np.clip((noise - threshold) / 1.5 + 0.25, 0, 1) * np.clip(depth / 0.5, 0.1, 1)
    shade = 1 + 0.05 * canvas.texture(0.6, rng) + 0.09 * canvas.texture(0.08, rng) + 0.1 * np.exp(-((depth / 0.3) ** 2))
    return _blend(np.asarray(recipe.chromatin, np.float32) * shade[..., None], recipe.chromatin_gap, gap)


def _vacuoles(canvas: Canvas, count: int, radius_um: float, rng: np.random.Generator) -> Floats:
    """Share (S,S) of clear vacuoles: a cluster of round holes in one part of a cell of `radius_um`."""
    cluster, away = rng.uniform(0, 2 * math.pi), rng.uniform(0.55, 0.8) * radius_um
    share = np.zeros_like(canvas.y)
    for _ in range(count):
        y, x = np.array([math.sin(cluster), math.cos(cluster)]) * away + rng.normal(0, 0.18 * radius_um, 2)
        size = rng.uniform(0.2, 0.55) * rng.uniform(1, 1.8)
        hole = np.float32(size) - np.hypot(canvas.y - np.float32(y), canvas.x - np.float32(x))
        share = np.maximum(share, _coverage(hole))
    return share


def _cytoplasm(canvas: Canvas, recipe: Recipe, depth: Floats, granular: Floats, rng: np.random.Generator) -> Floats:
    """Density (S,S,3) of a cell without its nucleus, as if it filled the patch; `granular`: the granules' share."""
    shade = 1 + recipe.mottle * canvas.texture(0.14, rng) + 0.08 * canvas.texture(0.7, rng)
    shade *= 1 + recipe.rim * np.exp(-((depth / 0.4) ** 2))
    body = np.asarray(recipe.cytoplasm, np.float32) * shade[..., None]
    if not recipe.granules.over_nucleus:
        body = _blend(body, recipe.granules.density, granular)
    if recipe.vacuoles:
        holes = _vacuoles(canvas, rng.poisson(recipe.vacuoles * rng.exponential()), float(depth.max()), rng)
        body = _blend(body, (0.08, 0.08, 0.03), holes)
    return np.asarray(body, np.float32)


def draw_white_cell(kind: str, um_per_px: float, rng: np.random.Generator) -> DrawnCell:
    """A nucleated cell of a kind named in RECIPES, at a scale in µm per pixel. Raises KeyError for another kind."""
    recipe = RECIPES[kind]
    mean, spread = recipe.diameter_um
    radius = (mean + spread * float(np.clip(rng.standard_normal(), -2, 2))) / 2
    elongation = rng.uniform(1.0, 1.0 + 4 * recipe.roughness)
    waves = _waves(range(2, 7), recipe.roughness, rng)
    canvas = Canvas.around(_reach_um(radius, elongation, waves) + 5 * recipe.ruffle_um, um_per_px)
    depth = canvas.turned(rng.uniform(0, 2 * math.pi)).depth(radius, elongation, waves)
    depth += recipe.ruffle_um * canvas.texture(0.22, rng)
    inside = _coverage(depth)

    grains = recipe.granules
    granular = canvas.grains(grains.per_um2, grains.radius_um, rng)
    granular *= np.clip(0.8 + 0.35 * canvas.texture(1.2, rng), 0, 1)
    body = _cytoplasm(canvas, recipe, depth, granular, rng)
    uneven = 0.1 * canvas.texture(0.9, rng) + 0.05 * canvas.texture(0.35, rng)
    nucleus = np.minimum(_union_depth(canvas, recipe.nucleus(rng), radius) + uneven, depth - 0.25)
    body = _blend(body, _chromatin(canvas, recipe, nucleus, rng), _coverage(nucleus))
    if grains.over_nucleus:
        body = _blend(body, grains.density, granular)

    density = body * (inside * rng.normal(1.0, 0.05))[..., None]
    if rng.random() < 0.4:
        ring = (1 - inside) * np.exp(-((depth / 0.5) ** 2))
        density -= np.float32(0.06) * ring[..., None]
    return DrawnCell(kind, np.asarray(density, np.float32), inside > 0.5)


def draw_platelet(um_per_px: float, rng: np.random.Generator) -> DrawnCell:
    """A platelet of 2 to 4.5 µm: a ragged pale rim around purple granules."""
    radius = float(np.clip(rng.normal(3.0, 0.5), 2.0, 4.5)) / 2
    elongation = rng.uniform(1.0, 1.35)
    waves = np.concatenate([_waves(range(2, 6), 0.07, rng), _waves(range(8, 20), 0.014, rng)])
    canvas = Canvas.around(_reach_um(radius, elongation, waves), um_per_px)
    depth = canvas.turned(rng.uniform(0, 2 * math.pi)).depth(radius, elongation, waves)
    core = np.clip(depth / (0.5 * radius), 0, 1)
    granular = canvas.grains(7.0, 0.17, rng) * core
    body = np.asarray((0.36, 0.42, 0.13), np.float32) * (1 + 0.12 * canvas.texture(0.2, rng))[..., None]
    density = _blend(body, (1.0, 1.8, 0.38), granular) * (_coverage(depth) * rng.normal(1, 0.1))[..., None]
    return DrawnCell("platelet", np.asarray(density, np.float32), depth > 0)


def draw_red_cell(radius_um: float, um_per_px: float, rng: np.random.Generator) -> DrawnCell:
    """A red cell, thin in the middle; now and then an ovalocyte, a deformed one or one with a crenated edge."""
    odd = rng.random()
    elongation = rng.uniform(1.2, 1.5) if odd < 0.12 else rng.uniform(1.0, 1.15)
    waves = _waves(range(2, 6), 0.06 if 0.12 < odd < 0.2 else 0.022, rng)
    if odd > 0.985:
        waves = np.concatenate([waves, _waves(range(9, 14), 0.018, rng)])
    canvas = Canvas.around(_reach_um(radius_um, elongation, waves), um_per_px)
    depth = canvas.turned(rng.uniform(0, 2 * math.pi)).depth(radius_um, elongation, waves)
    rho = 1 - depth / np.float32(radius_um)
    pallor, width, slope = rng.beta(2.2, 1.4) * 0.95, rng.uniform(0.3, 0.5), rng.uniform(2.0, 3.5)
    thickness = 1 - pallor * np.exp(-((rho / width) ** slope))
    thickness *= np.sqrt(np.clip(1 - 0.6 * np.clip(rho, 0, 1) ** 6, 0, 1)) * _coverage(depth)
    dye = np.asarray((0.25, 0.375, 0.215), np.float32) * rng.normal(1.0, 0.11)
    return DrawnCell("rbc", np.asarray(thickness[..., None] * dye, np.float32), depth > 0)
