"""Faster R-CNN on one map of features (Ren 2015; Wang 2021, "Faster RCNN model", Figure 2)."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from wbc.models.bfloat16 import InBfloat16
from wbc.models.expansions import narrow
from wbc.models.faster_rcnn import FasterRCNN, FasterRCNNSettings, RefiningHeads, assembled


@dataclass(frozen=True, slots=True)
class OneLevelSettings(FasterRCNNSettings):
    """Arguments of `build`: `FasterRCNNSettings`, every anchor on the one map, of `stride` px.

    The paper takes "the last layer's feature maps" of ResNet-50, and says neither their stride nor the anchors. Here
    the last stage is dilated to stride 16 (Dai 2017), which Ren 2015 has: a platelet of 12 px is nothing on stride 32.
    The anchors are those of the pyramid, so that the two differ in their maps alone. The heads are two fully connected
    layers, as in Ren 2015: thus any backbone that timm can dilate will do.
    """

    anchor_px: tuple[tuple[int, ...], ...] = ((12, 19, 28, 42, 62, 90, 130, 190),)
    stride: int = 16

    def __post_init__(self) -> None:
        if self.stride not in (8, 16, 32):
            raise ValueError(f"stride is {self.stride}, none of 8, 16, 32")
        if len(self.anchor_px) != 1:
            raise ValueError(f"anchor_px has {len(self.anchor_px)} lists, and the model one level")


class OneLevel(nn.Module):
    """A timm feature extractor up to one map, and a 3×3 convolution to the channels that the heads read."""

    def __init__(self, settings: OneLevelSettings) -> None:
        super().__init__()
        body = _dilated(settings.backbone, settings.stride)
        if settings.expanded_channels:
            narrow(body, settings.expanded_channels)
        self.body = body
        self.out_channels = settings.pyramid_channels
        self.reduce = nn.Conv2d(body.feature_info.channels()[-1], self.out_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels float (B,3,H,W) -> one map (B,C,H/stride,W/stride)."""
        (features,) = self.body(pixels.contiguous(memory_format=torch.channels_last))
        return {"0": self.reduce(features).relu()}


def _dilated(name: str, stride: int) -> Any:
    """A timm feature extractor whose last map has `stride`. Raises ValueError where timm cannot dilate it so."""
    try:
        return timm.create_model(name, features_only=True, out_indices=(-1,), output_stride=stride)
    except AssertionError as error:
        raise ValueError(f"backbone {name!r} cannot be dilated to stride {stride}") from error


class OneLevelBackbone(InBfloat16, OneLevel):
    """The one map, in bfloat16 where that pays."""


def build(
    n_classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    settings: OneLevelSettings = OneLevelSettings(),
) -> FasterRCNN:
    """A detector that is called as `faster_rcnn.build`'s is."""
    return assembled(OneLevelBackbone(settings), RefiningHeads(n_classes, settings), mean, std, settings)
