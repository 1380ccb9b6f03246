"""The three CNNs of Varra 2019, "Models and Results": one, two and three convolutions on 60×80 pixels.

The layer tables of the report are pictures that did not survive. Told in words, and kept: convolution, ReLU, max
pooling, dropout, a fully connected layer and a softmax ("Convolutional Neural Networks"); that model 1 is the simplest;
that model 2 has one more convolution "to extract more low-level features" and a higher dropout; that model 3 has
another one with more filters, one more max pooling and one more dropout. All else is a guess: filters of 3×3 without
padding and pools of 2×2 (Keras' own), 16 filters, 32 where there are "more", a hidden layer of 128, and dropouts of a
quarter, then a half. Model 2's convolution stands before the pool, since no pool is added with it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEIGHT, WIDTH = 60, 80  # px of its pictures, which show 34 by 45 µm
FILTERS, MORE_FILTERS, HIDDEN = 16, 32, 128
DROPOUT = {1: 0.25, 2: 0.5, 3: 0.5}


@dataclass(frozen=True, slots=True)
class VarraSettings:
    """Which of its three models, 1 to 3."""

    model: int = 2

    def __post_init__(self) -> None:
        if self.model not in DROPOUT:
            raise ValueError(f"model is {self.model}: the report has the models 1, 2 and 3")


class VarraNet(nn.Module):
    """Layers of learnt filters, then one hidden layer. Of a square crop it looks at the middle three quarters."""

    def __init__(self, n_classes: int, settings: VarraSettings) -> None:
        super().__init__()
        dropout = DROPOUT[settings.model]
        self.features = _filters(settings.model, dropout).to(memory_format=torch.channels_last)
        with torch.no_grad():
            n_features = self.features(torch.zeros(1, 3, HEIGHT, WIDTH)).numel()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(n_features, HIDDEN), nn.ReLU(), nn.Dropout(dropout))
        self.classifier = nn.Linear(HIDDEN, n_classes)

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (B,3,H,W), normalised as the card says -> logits (B,C)."""
        logits: Tensor = self.classifier(self.hidden(self.features(its_picture(crops))))
        return logits


def build(n_classes: int, settings: VarraSettings = VarraSettings()) -> VarraNet:
    """An untrained network."""
    return VarraNet(n_classes, settings)


def its_picture(crops: Tensor) -> Tensor:
    """What the network looks at of crops (B,3,H,W): the middle rows, three to four columns, scaled to (B,3,60,80)."""
    height, width = crops.shape[2:]
    rows = min(height, round(width * HEIGHT / WIDTH))
    top = (height - rows) // 2
    middle = crops[:, :, top : top + rows]
    if middle.shape[2:] == (HEIGHT, WIDTH):
        return middle
    return F.interpolate(middle, (HEIGHT, WIDTH), mode="bilinear", align_corners=False, antialias=True)


def _filters(model: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, FILTERS, 3), nn.ReLU()]
    if model >= 2:
        layers += [nn.Conv2d(FILTERS, FILTERS, 3), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
    if model == 3:
        layers += [nn.Conv2d(FILTERS, MORE_FILTERS, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
