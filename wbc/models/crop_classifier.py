"""A timm image classifier that names one cell in the middle of a square crop."""

from dataclasses import dataclass

import timm
import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class CropClassifierSettings:
    """Arguments of `build`: any timm model by name, and its dropout and stochastic depth in training."""

    backbone: str = "tf_efficientnet_lite0"
    dropout: float = 0.2
    drop_path: float = 0.1


def build(n_classes: int, settings: CropClassifierSettings = CropClassifierSettings()) -> nn.Module:
    """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,n_classes)."""
    model: nn.Module = timm.create_model(
        settings.backbone, num_classes=n_classes, drop_rate=settings.dropout, drop_path_rate=settings.drop_path
    )
    return model.to(memory_format=torch.channels_last)
