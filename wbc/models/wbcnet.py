"""WBCNet (Jiang, Cheng et al., IJPRAI 32, 2018), as section 2.1 of ASAE-Net 2020 describes it.

Told there, and kept: 33 layers, after AlexNet, with residual layers and another activation. Guesses: the 33 are counted
as Caffe lists layers (convolutions, norms, activations, sums, pools and dropouts, each one); AlexNet's first two and
its last convolution stand as they are, its third and fourth are residual blocks of two; the activation is a leaky ReLU;
the fully connected layers are 1,024 wide, not 4,096, since the kinds are few. The last pool is adaptive, to 6×6 as
AlexNet's is at 224 px, so that crops of any size fit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SLOPE = 0.1  # of the leaky ReLU
POOLED = 6


@dataclass(frozen=True, slots=True)
class WbcNetSettings:
    """The channels of its convolutions, the width of its fully connected layers, and their dropout."""

    first: int = 96
    channels: int = 256
    hidden: int = 1024
    dropout: float = 0.5


class ResidualBlock(nn.Module):
    """Convolution, norm, activation, convolution, norm, sum, activation: seven of the layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.Sequential(*_convolution(channels, channels, 3))
        self.after = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.activation = nn.LeakyReLU(SLOPE)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,F,H,W) -> (B,F,H,W)."""
        answer: Tensor = self.activation(maps + self.after(self.before(maps)))
        return answer


class WbcNet(nn.Module):
    """AlexNet with norms and residual layers."""

    def __init__(self, n_classes: int, settings: WbcNetSettings) -> None:
        super().__init__()
        first, wide, hidden = settings.first, settings.channels, settings.hidden
        self.features = nn.Sequential(
            *_convolution(3, first, 11, stride=4, padding=2),
            nn.MaxPool2d(3, 2, padding=1),
            *_convolution(first, wide, 5),
            nn.MaxPool2d(3, 2, padding=1),
            ResidualBlock(wide),
            ResidualBlock(wide),
            *_convolution(wide, wide, 3),
            nn.AdaptiveMaxPool2d(POOLED),
        ).to(memory_format=torch.channels_last)
        self.hidden = nn.Sequential(
            nn.Flatten(),
            *_connected(wide * POOLED**2, hidden, settings.dropout),
            *_connected(hidden, hidden, settings.dropout),
        )
        self.classifier = nn.Linear(hidden, n_classes)

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,C)."""
        logits: Tensor = self.classifier(self.hidden(self.features(crops)))
        return logits


def build(n_classes: int, settings: WbcNetSettings = WbcNetSettings()) -> WbcNet:
    """An untrained WBCNet."""
    return WbcNet(n_classes, settings)


def _convolution(n_in: int, n_out: int, kernel: int, stride: int = 1, padding: int | None = None) -> list[nn.Module]:
    padding = kernel // 2 if padding is None else padding
    convolution = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(n_out), nn.LeakyReLU(SLOPE)]


def _connected(n_in: int, n_out: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(n_in, n_out), nn.LeakyReLU(SLOPE), nn.Dropout(dropout)]
