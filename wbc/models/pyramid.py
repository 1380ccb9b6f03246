"""Feature pyramids on any timm backbone: top-down (Lin 2017), and with a second way up (Wang 2021, Figure 3)."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from wbc.models.bfloat16 import InBfloat16
from wbc.models.expansions import narrow

LEVELS = ("0", "1", "2", "3")  # of the pyramid: strides 4, 8, 16, 32


class Pyramid(nn.Module):
    """A timm feature extractor under a feature pyramid (Wang 2021, "Feature pyramid network model").

    The maps {C2...C5} each pass a 1×1 convolution, are added from the top to the bottom, each scaled up by two to the
    next, and a 3×3 convolution takes away the aliasing. The levels are counted from the last map, of stride 32: so
    {C2...C5} are the same of a ResNet, which has five maps, and of a VGG, which has six. `expanded` are the expanded
    channels of the body's inverted residuals, none: as timm has them.
    """

    def __init__(self, name: str, channels: int, expanded: Sequence[int] = ()) -> None:
        super().__init__()
        body: Any = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1))
        if expanded:
            narrow(body, expanded)
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), channels)
        self.out_channels = channels

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels float (B,3,H,W) -> maps (B,C,H/s,W/s), one a level."""
        maps = self.body(pixels.contiguous(memory_format=torch.channels_last))
        levels: dict[str, Tensor] = self.fpn(OrderedDict(zip(LEVELS, maps, strict=True)))
        return levels


class TwoWayPyramid(Pyramid):
    """The pyramid with a way up again, which brings the sure places of the lower maps to the upper ones.

    Wang 2021, "Proposed model for white cell counts": each convolution of the added pathway predicts, and fuses with
    the output of the block before it. Of the sizes the paper is silent. Here, as in PANet (Liu 2018, section 3.1), the
    output below is halved by a 3×3 convolution, added to the pyramid's map, and passes a 3×3 convolution; what it
    gives is what the proposals and heads read ("prediction"), and goes up ("fusion"). Its "upsampling" is the
    top-down way's.
    """

    def __init__(self, name: str, channels: int, expanded: Sequence[int] = ()) -> None:
        super().__init__(name, channels, expanded)
        self.halve = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in LEVELS[1:])
        self.fuse = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in LEVELS[1:])

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels float (B,3,H,W), sides multiples of 32 -> maps (B,C,H/s,W/s), one a level."""
        levels = super().forward(pixels)
        below = levels[LEVELS[0]]
        for name, halve, fuse in zip(LEVELS[1:], self.halve, self.fuse, strict=True):
            below = levels[name] = fuse(levels[name] + halve(below).relu()).relu()
        return levels


class PyramidBackbone(InBfloat16, Pyramid):
    """The pyramid, in bfloat16 where that pays."""


class TwoWayBackbone(InBfloat16, TwoWayPyramid):
    """The pyramid with two ways, in bfloat16 where that pays."""
