"""NLNet (Wang, Girshick et al., "Non-local neural networks", CVPR 2018; Table 5 of ASAE-Net 2020) on a timm backbone.

The block is that paper's section 3.3: z = W y + x (equation 6), with y of its equation 1 and the embedded Gaussian of
its equation 4, in half the channels. A batch norm that begins at zero follows W, so that the block begins as the
identity (section 4.1). ASAE-Net's paper does not tell how many blocks it used and where: one, behind layer3 (res4), is
a guess from the other's Table 2b, where one block helps most there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wbc.models.staged import StagedClassifier, StagedSettings


@dataclass(frozen=True, slots=True)
class NonLocalSettings(StagedSettings):
    """The backbone, and the layer behind which the block stands."""


class NonLocalBlock(nn.Module):
    """Every place of a map gets a mean of all places, weighed by how alike they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.w = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.BatchNorm2d(channels))
        nn.init.zeros_(self.w[1].weight)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,F,H,W) -> (B,F,H,W)."""
        theta, phi, g = (embed(maps).flatten(2) for embed in (self.theta, self.phi, self.g))
        weights = (theta.transpose(1, 2) @ phi).softmax(2)  # equation 4, each row divided by its sum
        answer = g @ weights.transpose(1, 2)
        z: Tensor = self.w(answer.unflatten(2, maps.shape[2:])) + maps  # equation 6
        return z


class NonLocalNet(StagedClassifier):
    """A backbone with one non-local block."""

    def __init__(self, n_classes: int, settings: NonLocalSettings) -> None:
        super().__init__(n_classes, settings)
        with torch.no_grad():
            channels = self.eval().lower(torch.zeros(1, 3, 64, 64)).shape[1]
        self.block = NonLocalBlock(channels).to(memory_format=torch.channels_last)

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,C)."""
        return self.forward_head(self.forward_features(crops))

    def forward_features(self, crops: Tensor) -> Tensor:
        """Crops -> the backbone's last maps."""
        return self.upper(self.block(self.lower(crops)))


def build(n_classes: int, settings: NonLocalSettings = NonLocalSettings()) -> NonLocalNet:
    """An untrained NLNet."""
    return NonLocalNet(n_classes, settings)
