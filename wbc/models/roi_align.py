"""RoIAlign (He 2017, "Mask R-CNN") over a feature pyramid; on a CPU one weighted sum of rows for all levels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

ROWS = "rows"  # beside a pyramid's maps: their pixels as one table, made when it is first needed
PADDED_PX = 32  # torchvision pads the sides of a batch to multiples of it


class PyramidRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """torchvision's RoIAlign, each region read from the level of its size: on a CPU in a ninth of the time.

    torchvision's CPU kernel walks plane by plane through maps that are laid out channels last. Each place that it reads
    is the weighted sum of four neighbours on a map, thus of four rows of a table with a row a pixel: what
    `embedding_bag` computes. Under autograd and on other devices torchvision's own kernel runs.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps (B,C,H,W) by level, regions (R,4) and (H,W) of each picture -> pooled regions (sum of R,C,bins,bins)."""
        # torchvision works out the levels' scales once, from its first pictures, rounded to powers of two: by the sides
        # that a small picture has before it is padded they would be wrong, for good.
        image_shapes = [padded(shape) for shape in image_shapes]
        maps = [x[name] for name in self.featmap_names]
        if torch.is_grad_enabled() or maps[0].device.type != "cpu" or self.sampling_ratio < 1:
            pooled: Tensor = super().forward(x, boxes, image_shapes)
            return pooled
        if self.scales is None or self.map_levels is None:
            # One region is enough for that, and its values are not taken, as the same picture would have others the
            # next time.
            super().forward(x, [of_picture[:1] for of_picture in boxes], image_shapes)
        if ROWS not in x:
            x[ROWS] = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps]).float()
        places = MapRows(x[ROWS], [m.shape for m in maps], self.scales)
        return pool_rows(places, self.map_levels(boxes), boxes, self.output_size, self.sampling_ratio)


def padded(shape: tuple[int, int]) -> tuple[int, int]:
    """The (H,W) that a picture of `shape` has in a batch of its own."""
    height, width = (PADDED_PX * math.ceil(side / PADDED_PX) for side in shape)
    return height, width


@dataclass(frozen=True, slots=True)
class MapRows:
    """A pyramid's pixels as rows float32 (N,C), level by level.

    `shapes` are its maps', (B,C,H,W), and `scales` their pixels per pixel of the picture.
    """

    table: Tensor
    shapes: Sequence[torch.Size]
    scales: Sequence[float]


def pool_rows(rows: MapRows, levels: Tensor, boxes: Sequence[Tensor], bins: tuple[int, int], samples: int) -> Tensor:
    """Pooled regions float32 (R,C,bins) of the regions (R,4) of each picture, each from the map that `levels` (R) says.

    A bin is the mean of `samples` by `samples` places, each interpolated between four pixels of its map; a place more
    than a pixel outside of the map is 0.
    """
    device = rows.table.device
    regions = torch.cat(list(boxes)) * torch.tensor(rows.scales, device=device)[levels][:, None]
    counts = torch.tensor([len(b) for b in boxes], device=device)
    pictures = torch.repeat_interleave(torch.arange(len(boxes), device=device), counts, output_size=len(regions))
    sizes = torch.tensor([(height, width) for _, _, height, width in rows.shapes], device=device)
    heights, widths = sizes[levels].unbind(1)
    pixels = torch.tensor([0, *(n * height * width for n, _, height, width in rows.shapes[:-1])], device=device)
    starts = pixels.cumsum(0)[levels] + pictures * heights * widths
    y, y_weights = _neighbours(regions[:, 1], regions[:, 3], heights, bins[0], samples)
    x, x_weights = _neighbours(regions[:, 0], regions[:, 2], widths, bins[1], samples)
    y = y * widths[:, None, None] + starts[:, None, None]
    # (R, bins down, bins across, 2 samples down, 2 samples across): a bag of rows for each bin
    bags = y[:, :, None, :, None] + x[:, None, :, None, :]
    weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
    bag = (bags.shape[:3].numel(), (2 * samples) ** 2)
    pooled = nn.functional.embedding_bag(
        bags.reshape(bag), rows.table, mode="sum", per_sample_weights=weights.reshape(bag) / samples**2
    )
    return pooled.view(len(regions), *bins, rows.table.shape[1]).permute(0, 3, 1, 2)


def _neighbours(low: Tensor, high: Tensor, length: Tensor, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """The pixels on both sides of each place along one axis, and their weights: int64 and float32 (R,bins,2·S)."""
    places = bins * samples
    step = (high - low).clamp(min=1) / places
    at = low[:, None] + (torch.arange(places, device=low.device) + 0.5) * step[:, None]
    last = length[:, None] - 1
    outside = (at < -1) | (at > length[:, None])
    at = at.clamp(min=0).minimum(last)
    before = at.long().minimum(last)
    beyond = at - before
    pixels = torch.stack([before, (before + 1).minimum(last)], 2)
    weights = torch.stack([1 - beyond, beyond], 2).masked_fill(outside[..., None], 0)
    shape = (len(low), bins, 2 * samples)
    return pixels.view(shape), weights.view(shape)
