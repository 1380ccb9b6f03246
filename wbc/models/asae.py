"""ASAE-Net (Wang, Guo et al. 2020, sections 3.1 and 3.2): regions suppressed and enhanced, no parameters."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wbc.models.staged import StagedClassifier, StagedSettings


@dataclass(frozen=True, slots=True)
class AsaeSettings(StagedSettings):
    """The figures of section 4.2, and which of the two branches learn (Table 2 has them one by one, too).

    `kernel_px` is the region in which a peak is the highest; it is the highest of all with a chance of `top1_chance`,
    else one of the 2nd to `candidates`-th. `ratio` (γ) of it and a square of `area_px` (β) bound what is suppressed.
    `level` divides what is enhanced by the mean of its map, which the paper does not: a sigmoid about 0 halves the maps
    that the upper layers learn, and at test, where the layer is skipped, they meet maps twice as high.
    """

    kernel_px: int = 5
    top1_chance: float = 0.7
    candidates: int = 5
    ratio: float = 0.8
    area_px: int = 36
    suppress: bool = True
    enhance: bool = True
    level: bool = False

    def __post_init__(self) -> None:
        StagedSettings.__post_init__(self)
        if not (self.suppress or self.enhance):
            raise ValueError("neither suppress nor enhance: an ASAE layer has at least one branch")
        if self.kernel_px < 1 or self.kernel_px % 2 == 0:
            raise ValueError(f"kernel_px is {self.kernel_px}: a region about a pixel has an odd side")
        if self.candidates < 1 or self.area_px < 1 or not 0 <= self.top1_chance <= 1:
            raise ValueError("candidates and area_px are at least 1, and top1_chance is a chance")


class AsaeNet(StagedClassifier):
    """Figure 2: a backbone, an ASAE layer behind layer3 or layer4, and two branches that share all parameters.

    In training it answers with the logarithm of the mean of both branches' probabilities (section 3.3, "averaging the
    two probability distributions"): as logits these give that mean. At test the layer is skipped. Guesses where the
    paper is silent: both branches go through the upper layers as one batch, so that batch norm sees both; that the
    layer is skipped at test is ADL's way, which section 3.2 takes over "in the training phase".
    """

    def __init__(self, n_classes: int, settings: AsaeSettings) -> None:
        super().__init__(n_classes, settings)
        self.settings = settings

    def forward(self, crops: Tensor) -> Tensor:
        """Crops float32 (B,3,S,S), normalised as the card says -> logits (B,C)."""
        maps = self.lower(crops)
        if not self.training:
            return self.forward_head(self.upper(maps))
        branches = asae_layer(maps, self.settings)
        logits = self.forward_head(self.upper(torch.cat(branches)))
        return mean_of_branches(logits, len(branches))


def build(n_classes: int, settings: AsaeSettings = AsaeSettings()) -> AsaeNet:
    """An untrained ASAE-Net."""
    return AsaeNet(n_classes, settings)


def asae_layer(maps: Tensor, settings: AsaeSettings) -> list[Tensor]:
    """Figure 3: maps (B,F,H,W) with one region suppressed, and maps enhanced where attention is high."""
    attention = attention_map(maps)
    branches = []
    if settings.suppress:
        branches.append(maps * suppression_mask(attention, settings)[:, None])
    if settings.enhance:
        branches.append(maps * enhancement_map(attention, settings)[:, None])
    return branches


def enhancement_map(attention: Tensor, settings: AsaeSettings) -> Tensor:
    """Factors (B,H,W) of a map's pixels: the sigmoid of attention (B,H,W), where asked of a mean of 1 in each map."""
    factors = attention.sigmoid()
    return factors / factors.mean((1, 2), keepdim=True) if settings.level else factors


def mean_of_branches(logits: Tensor, n: int) -> Tensor:
    """Logits (n·B,C) of n branches -> (B,C), the logarithm of the mean of their probabilities."""
    log_p = logits.float().log_softmax(1).reshape(n, len(logits) // n, logits.shape[1])
    return log_p.logsumexp(0) - math.log(n)


def attention_map(maps: Tensor) -> Tensor:
    """The self-attention map (B,H,W) of maps (B,F,H,W): their mean over channels."""
    return maps.mean(1)


@torch.no_grad()
def suppression_mask(attention: Tensor, settings: AsaeSettings) -> Tensor:
    """Equations 3 and 4: (B,H,W), 0 in one region of each map (B,H,W), else 1. No gradient goes through it.

    The square about the peak has the side √β, rounded; one that is even reaches a pixel further up and left (a guess).
    Where the peak is negative, as behind a layer without ReLU, no value reaches α and nothing is suppressed.
    """
    _, height, width = attention.shape
    place = chosen_peak(attention, settings)
    alpha = attention.flatten(1).gather(1, place[:, None])[..., None] * settings.ratio
    side = round(math.sqrt(settings.area_px))
    rows = torch.arange(height, device=attention.device)[None] - (place // width)[:, None]
    columns = torch.arange(width, device=attention.device)[None] - (place % width)[:, None]
    return _outside(rows, columns, side, attention >= alpha).to(attention.dtype)


def _outside(rows: Tensor, columns: Tensor, side: int, high: Tensor) -> Tensor:
    def within(distance: Tensor) -> Tensor:
        return (distance >= -(side // 2)) & (distance < side - side // 2)

    return ~(within(rows)[:, :, None] & within(columns)[:, None, :] & high)


def peaks(attention: Tensor, kernel_px: int) -> Tensor:
    """Which pixels of maps (B,H,W) are the highest of the `kernel_px` square about them: bool (B,H,W)."""
    return attention == F.max_pool2d(attention[:, None], kernel_px, 1, kernel_px // 2)[:, 0]


def chosen_peak(attention: Tensor, settings: AsaeSettings) -> Tensor:
    """The peak selection strategy: the number (B,) in its flat map of one of each map's highest peaks.

    Where there are fewer peaks than candidates, all are; where there is only one, it is chosen (a guess).
    """
    values = attention.masked_fill(~peaks(attention, settings.kernel_px), -torch.inf).flatten(1)
    highest, places = values.topk(min(settings.candidates, values.shape[1]), 1)
    others = highest.isfinite().sum(1) - 1
    dice = torch.rand(2, len(attention), device=attention.device)
    another = 1 + (dice[1] * others).long().clamp(max=others - 1)
    rank = torch.where((dice[0] < settings.top1_chance) | (others < 1), 0, another)
    return places.gather(1, rank[:, None])[:, 0]
