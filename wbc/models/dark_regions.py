"""A detector without weights: connected regions darker than the ground. The classical baseline, exact on flat cells."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class DarkRegionsSettings:
    """Cells are darker than `level` (0..1); regions of fewer than `smallest_px` pixels are dirt."""

    level: float = 0.5
    smallest_px: int = 12


class DarkRegions(nn.Module):
    """Every connected region whose mean channel is dark enough is one cell of the first class, score 1.

    The box is the region's exact extent.
    """

    def __init__(self, settings: DarkRegionsSettings = DarkRegionsSettings()) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, tiles: list[Tensor]) -> list[dict[str, Tensor]]:
        """Tiles float32 (3,H,W) in 0..1 -> per tile boxes (N,4), labels (N,), scores (N,), as of torchvision."""
        return [self._regions(t) for t in tiles]

    def _regions(self, tile: Tensor) -> dict[str, Tensor]:
        dark = tile.mean(0).cpu().numpy() < self.settings.level
        numbers, count = ndimage.label(dark)
        sizes = ndimage.sum_labels(dark, numbers, np.arange(1, count + 1))
        boxes = [
            (s[1].start, s[0].start, s[1].stop, s[0].stop)
            for s, size in zip(ndimage.find_objects(numbers), np.atleast_1d(sizes), strict=True)
            if size >= self.settings.smallest_px
        ]
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "scores": torch.ones(len(boxes)),
        }
