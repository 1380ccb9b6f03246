"""Cell3Net (Qin, Gao et al. 2018), as section 2.1 of ASAE-Net 2020 describes it.

Told there, and kept: "seven convolutional layers, three pooling layers, three residual layers, two fully-connected
layers and an output layer". Guesses: one convolution of 5×5 and stride 2 comes first; each residual layer adds what
goes in to what two convolutions of 3×3 make of it, and a pool follows it; since an eighth convolution would be one too
many, channels are added to the shortcut as zeros (option A of He et al. 2016); batch norm and ReLU follow every
convolution; 64, 128 and 256 filters; fully connected layers of 512 with a dropout of a half. The last pool is adaptive,
to 4×4, so that crops of any size fit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLED = 4


@dataclass(frozen=True, slots=True)
class Cell3NetSettings:
    """Filters of the three residual layers, the width of the fully connected ones, and their dropout."""

    filters: tuple[int, int, int] = (64, 128, 256)
    hidden: int = 512
    dropout: float = 0.5


class ResidualLayer(nn.Module):
    """Two convolutions and a shortcut without parameters, whose added channels are zero."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.added = n_out - n_in
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()),
            *(nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out)),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,F,H,W) -> (B,F',H,W)."""
        shortcut = F.pad(maps, (0, 0, 0, 0, 0, self.added))
        return F.relu(self.convolutions(maps) + shortcut)


class Cell3Net(nn.Module):
    """Three residual layers, each with a pool behind it."""

    def __init__(self, n_classes: int, settings: Cell3NetSettings) -> None:
        super().__init__()
        one, two, three = settings.filters
        self.features = nn.Sequential(
            *(nn.Conv2d(3, one, 5, 2, 2, bias=False), nn.BatchNorm2d(one), nn.ReLU()),
            *(ResidualLayer(one, one), nn.MaxPool2d(2)),
            *(ResidualLayer(one, two), nn.MaxPool2d(2)),
            *(ResidualLayer(two, three), nn.AdaptiveMaxPool2d(POOLED)),
        ).to(memory_format=torch.channels_last)
        width, dropout = settings.hidden, settings.dropout
        self.hidden = nn.Sequential(
            nn.Flatten(),
            *(nn.Linear(three * POOLED**2, width), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout)),
        )
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,C)."""
        logits: Tensor = self.classifier(self.hidden(self.features(crops)))
        return logits


def build(n_classes: int, settings: Cell3NetSettings = Cell3NetSettings()) -> Cell3Net:
    """An untrained Cell3Net."""
    return Cell3Net(n_classes, settings)
