"""A timm image classifier in the five layers of a paper's drawing, open between them for a layer of one's own."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

N_LAYERS = 5


@dataclass(frozen=True, slots=True)
class StagedSettings:
    """Any timm ResNet, VGG or EfficientNet by name, the layer (0 to 4) behind which it is open, and its dropout."""

    backbone: str = "resnet50"
    after: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.after < N_LAYERS:
            raise ValueError(f"after is {self.after}: a backbone has the layers 0 to {N_LAYERS - 1}")


class StagedClassifier(nn.Module):
    """Crops float32 (B,3,S,S) -> logits (B,C) by `lower` and `upper` layers and a head; all parameters are timm's."""

    def __init__(self, n_classes: int, settings: StagedSettings) -> None:
        super().__init__()
        backbone = timm.create_model(settings.backbone, num_classes=n_classes, drop_rate=settings.dropout)
        self.backbone: Any = backbone.to(memory_format=torch.channels_last)
        self.after = settings.after
        layers_of(self.backbone)  # raises where it has none

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,C)."""
        return self.forward_head(self.forward_features(crops))

    def lower(self, crops: Tensor) -> Tensor:
        """Crops -> the maps (B,F,H,W) behind the layer `after`."""
        return _through(layers_of(self.backbone)[: self.after + 1], crops)

    def upper(self, maps: Tensor) -> Tensor:
        """These maps -> the backbone's last maps."""
        return _through(layers_of(self.backbone)[self.after + 1 :], maps)

    def forward_features(self, crops: Tensor) -> Tensor:
        """Crops -> the backbone's last maps, as they are at test."""
        return self.upper(self.lower(crops))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Last maps -> logits (B,C), or with `pre_logits` what the last layer gets."""
        return cast(Tensor, self.backbone.forward_head(maps, pre_logits=pre_logits))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return cast(nn.Module, self.backbone.get_classifier())


def build(n_classes: int, settings: StagedSettings = StagedSettings()) -> StagedClassifier:
    """An untrained backbone with nothing added: ResNet, SENet ("seresnet50"), VGG-16, what the others compare with."""
    return StagedClassifier(n_classes, settings)


def layers_of(backbone: nn.Module) -> list[list[nn.Module]]:
    """The modules of a timm backbone in five layers, each ending where its maps get smaller.

    Layer k's maps have 1/2^(k+1) of the crop's side, but for a ResNet's layers 0 and 1, which both have a quarter.
    Raises ValueError for a family that is none of ResNet, VGG and EfficientNet.
    """
    parts: Any = backbone
    if hasattr(parts, "layer4"):
        stem = [parts.conv1, parts.bn1, parts.act1, parts.maxpool]
        return [stem, [parts.layer1], [parts.layer2], [parts.layer3], [parts.layer4]]
    if isinstance(getattr(parts, "features", None), nn.Sequential):
        return _cut_behind_pools(parts.features)
    if hasattr(parts, "blocks") and hasattr(parts, "conv_head"):
        return _cut_by_reduction(parts)
    raise ValueError(f"{type(backbone).__name__} is no ResNet, VGG or EfficientNet of timm's")


def _cut_behind_pools(features: nn.Sequential) -> list[list[nn.Module]]:
    layers: list[list[nn.Module]] = [[]]
    for module in features:
        layers[-1].append(module)
        if isinstance(module, nn.MaxPool2d):
            layers.append([])
    return [layer for layer in layers if layer]


def _cut_by_reduction(net: Any) -> list[list[nn.Module]]:
    ends = [int(info["module"].removeprefix("blocks.")) + 1 for info in net.feature_info]
    starts = [0, *ends[:-1]]
    layers: list[list[nn.Module]] = [list(net.blocks)[a:b] for a, b in zip(starts, ends, strict=True)]
    layers[0] = [net.conv_stem, net.bn1, *layers[0]]
    layers[-1] = [*layers[-1], net.conv_head, net.bn2]
    return layers


def _through(layers: Iterable[Iterable[nn.Module]], maps: Tensor) -> Tensor:
    for layer in layers:
        for module in layer:
            maps = module(maps)
    return maps
