"""A timm image classifier that names one cell in the middle of a square crop."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

LOWER_STRIDES = (8, 16)
LEAST_VARIANCE = 1e-12  # or the slope of its root would be infinite where a channel is even


@dataclass(frozen=True, slots=True)
class CropClassifierSettings:
    """Arguments of `build`: any timm model by name, and its dropout and stochastic depth in training.

    With `lower_levels` it is a `MultiLevelClassifier`, as one becomes that a laboratory teaches.
    """

    backbone: str = "tf_efficientnet_lite0"
    dropout: float = 0.2
    drop_path: float = 0.1
    lower_levels: bool = False


class MultiLevelClassifier(nn.Module):
    """A timm classifier whose last layer is also told what its network sees lower down.

    Beside the network's own features it gets, of the maps of strides 8 and 16, each channel's mean, standard deviation
    and mean over the middle half of the crop. What ImageNet's networks see there travels farther to other stains than
    what they see at their end. `groups` are the widths of these features, in their order: the network's own, then
    three a map.
    """

    def __init__(self, backbone: Any, n_classes: int) -> None:
        super().__init__()
        self.levels = levels_below(backbone)
        if len(self.levels) != len(LOWER_STRIDES):
            raise ValueError(f"{type(backbone).__name__} tells no maps of strides {LOWER_STRIDES}: no lower_levels")
        channels = [backbone.feature_info[level]["num_chs"] for level in self.levels]
        self.groups = (backbone.get_classifier().in_features, *(n for n in channels for _ in range(3)))
        self.classifier = nn.Linear(sum(self.groups), n_classes)
        backbone.reset_classifier(0)
        self.backbone = backbone

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (N,3,S,S), normalised as the card says -> logits (N,C)."""
        return self.forward_head(self.forward_features(crops))

    def forward_features(self, crops: Tensor) -> Tensor:
        """Crops (N,3,S,S) -> what the last layer gets (N,F)."""
        maps, lower = self.backbone.forward_intermediates(crops, self.levels)
        own = self.backbone.forward_head(maps, pre_logits=True)
        return torch.cat([own, *(part for level in lower for part in _statistics(level))], 1)

    def forward_head(self, rows: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gives -> logits (N,C), or with `pre_logits` itself."""
        logits: Tensor = rows if pre_logits else self.classifier(rows)
        return logits

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def network(self) -> nn.Module:
        """A copy of the network alone; its last layer has the weights of the network's own features."""
        network: Any = deepcopy(self.backbone)
        network.reset_classifier(self.classifier.out_features)
        with torch.no_grad():
            network.get_classifier().weight.copy_(self.classifier.weight[:, : self.groups[0]])
            network.get_classifier().bias.copy_(self.classifier.bias)
        copied: nn.Module = network
        return copied


def build(n_classes: int, settings: CropClassifierSettings = CropClassifierSettings()) -> nn.Module:
    """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,n_classes)."""
    network: nn.Module = timm.create_model(
        settings.backbone, num_classes=n_classes, drop_rate=settings.dropout, drop_path_rate=settings.drop_path
    )
    model = MultiLevelClassifier(network, n_classes) if settings.lower_levels else network
    return model.to(memory_format=torch.channels_last)


def levels_below(network: Any) -> list[int]:
    """Which of a timm classifier's `feature_info` have the strides that `MultiLevelClassifier` looks at."""
    reductions = [level["reduction"] for level in getattr(network, "feature_info", ())]
    return [reductions.index(stride) for stride in LOWER_STRIDES if stride in reductions]


def _statistics(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of maps (N,C,H,W) each channel's mean, standard deviation and mean over the middle: (N,C) each."""
    height, width = maps.shape[2:]
    middle = maps[:, :, height // 4 : height - height // 4, width // 4 : width - width // 4]
    mean = maps.mean((2, 3), keepdim=True)
    spread = ((maps - mean).square().mean((2, 3)) + LEAST_VARIANCE).sqrt()
    return mean.flatten(1), spread, middle.mean((2, 3))
