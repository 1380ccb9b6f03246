"""A first look at a field, by its pixels alone: where nucleated cells may be, or that it cannot tell.

Nuclei are purple: of all that is on a smear they hold back the most red light. Red cells hold back blue and green,
and what is measured is light against the ground around, so that neither a lamp nor a vignette matters.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

LOOK_UM_PER_PX = 0.6
BLOCK_PX, BLOCK_SAMPLES, GROUND_PART = 48, 12, 0.9
# Optical density that nuclei have and red cells have not: red light most of all, blue against it.
PURPLE = (1.0, 0.3, -0.5)
GROUND_FLOOR = 60.0  # a darker ground is no bright field
FAINT = 0.04  # density in green from which something lies there
MOST_RED = 0.78  # what lies there holds back this part as much red light as green; more is no stain that this knows
# A nucleus is purple in the mean over WINDOW_PX squared (5 µm), more than TIMES as dense as the field's cells are in
# green, and than LOWEST; more than HIGHEST is asked of none.
WINDOW_PX, TIMES, LOWEST, HIGHEST = 9, 1.2, 0.05, 0.15

Density = NDArray[np.float32]


def find_places(look: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """Where a field uint8 (H,W,3) at LOOK_UM_PER_PX may have cells with nuclei: boxes float32 (N,4) x0,y0,x1,y1 in px.

    The threshold is generous: many places are none. None where the field is too dark to tell, or too unlike a smear
    whose red cells are red.
    """
    density = optical_density(look)
    if density is None:
        return None
    red, green = density[::2, ::2, 0], density[::2, ::2, 1]
    lies = green > FAINT
    stain = float(np.median(green[lies])) if lies.any() else 0.0
    if stain and float(np.median(red[lies])) > MOST_RED * stain:
        return None
    purple = ndimage.uniform_filter(density @ np.array(PURPLE, np.float32), WINDOW_PX)
    regions, _ = ndimage.label(purple > np.clip(TIMES * stain, LOWEST, HIGHEST))
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(regions)]
    return np.array(boxes, np.float32).reshape(-1, 4)


def optical_density(look: NDArray[np.uint8]) -> Density | None:
    """How much light is held back in each channel, log10, against the ground around: float32 (H,W,3).

    None where the ground is dark.
    """
    light = torch.from_numpy(np.require(look, requirements=["C", "W"])).permute(2, 0, 1)[None].float()
    ground = _ground(light)
    if float(ground.min()) < GROUND_FLOOR:
        return None
    density: Density = (ground / light.clamp_(min=1)).log10_()[0].permute(1, 2, 0).numpy()
    return density


def _ground(light: Tensor) -> Tensor:
    """The ground's light at each pixel (1,3,H,W): bright samples of blocks, the brightest of neighbours, blended."""
    height, width = light.shape[2:]
    rows, columns = (max(1, round(length / BLOCK_PX)) for length in (height, width))
    samples = functional.adaptive_avg_pool2d(light, (rows * BLOCK_SAMPLES, columns * BLOCK_SAMPLES))[0]
    blocks = samples.view(3, rows, BLOCK_SAMPLES, columns, BLOCK_SAMPLES).permute(0, 1, 3, 2, 4).flatten(3)
    rank = int(GROUND_PART * blocks.shape[3])
    bright = functional.max_pool2d(blocks.kthvalue(rank, dim=3).values[None], 3, 1, 1)
    smooth = functional.avg_pool2d(bright, 3, 1, 1, count_include_pad=False)
    return functional.interpolate(smooth, (height, width), mode="bilinear")
