"""Attention-based dropout layer (Choe and Shim; ADL in Table 5 of ASAE-Net 2020) on a timm backbone, no parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wbc.models.asae import attention_map
from wbc.models.staged import StagedClassifier, StagedSettings


@dataclass(frozen=True, slots=True)
class AdlSettings(StagedSettings):
    """The chance that a batch gets the drop mask, and what part of the highest attention is dropped.

    ASAE's paper does not tell which it used: these are guesses from ADL's own (75 %, 80 %), behind layer3 as ASAE's.
    """

    drop_chance: float = 0.75
    ratio: float = 0.8


class AdlNet(StagedClassifier):
    """In training one of two maps, chosen for a whole batch, multiplies the features; at test neither does."""

    def __init__(self, n_classes: int, settings: AdlSettings) -> None:
        super().__init__(n_classes, settings)
        self.settings = settings

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,C)."""
        maps = self.lower(crops)
        if self.training:
            maps = maps * self._chosen_map(attention_map(maps))[:, None]
        return self.forward_head(self.upper(maps))

    def _chosen_map(self, attention: Tensor) -> Tensor:
        if torch.rand(()) < self.settings.drop_chance:
            return drop_mask(attention, self.settings.ratio)
        return attention.sigmoid()


def build(n_classes: int, settings: AdlSettings = AdlSettings()) -> AdlNet:
    """An untrained ADL network."""
    return AdlNet(n_classes, settings)


@torch.no_grad()
def drop_mask(attention: Tensor, ratio: float) -> Tensor:
    """0 where attention (B,H,W) is above `ratio` of its map's highest, else 1. No gradient goes through it."""
    return (attention <= ratio * attention.amax((1, 2), keepdim=True)).to(attention.dtype)
