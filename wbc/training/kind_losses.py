"""What a classifier's answer costs: cross-entropy, GCE and GMMCE (ASAE-Net 2020), of labels that may be coarse."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Rgb = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LossSettings:
    """`ce` weighs all wrong classes (equation 1), `gce` those with the `highest` scores (2), `gmmce` those and the
    `lowest` (8). `smoothing` is the part of the label that all classes share; the paper has none."""

    name: Literal["ce", "gce", "gmmce"] = "ce"
    smoothing: float = 0.05
    highest: int = 3
    lowest: int = 3

    def __post_init__(self) -> None:
        if self.highest < 1 or self.lowest < 1:
            raise ValueError(f"highest is {self.highest} and lowest {self.lowest}: each counts at least one class")


def normalise(pixels: Tensor, mean: Rgb, std: Rgb) -> Tensor:
    """uint8 (B,3,S,S) -> float32, (x/255 - mean)/std, channels last."""
    m, s = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (mean, std))
    return ((pixels.float() / 255 - m) / s).contiguous(memory_format=torch.channels_last)


def tree_losses(
    matrix: NDArray[np.float32], mean: Rgb, std: Rgb, settings: LossSettings = LossSettings()
) -> Callable[[nn.Module, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The losses of a `Lesson`, of labels that may be coarse.

    Row r of `matrix` (R,C) marks the classes that label r covers; its probability is the sum of theirs.
    """
    covers = torch.from_numpy(matrix)

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        device = next(model.parameters()).device
        pixels, rows = batch
        scores = model(normalise(pixels.to(device), mean, std)).float()
        return {"loss_kind": kind_loss(scores, covers.to(device)[rows.to(device)] > 0, settings)}

    return losses


def kind_loss(scores: Tensor, covered: Tensor, settings: LossSettings) -> Tensor:
    """The mean loss of scores (B,C) whose labels cover the classes `covered`, bool (B,C)."""
    hit = scores.masked_fill(~covered, -torch.inf).logsumexp(1)
    weighed = scores.masked_fill(~(covered | weighed_negatives(scores, covered, settings)), -torch.inf).logsumexp(1)
    even = scores.log_softmax(1).mean(1)
    return ((1 - settings.smoothing) * (weighed - hit) - settings.smoothing * even).mean()


@torch.no_grad()
def weighed_negatives(scores: Tensor, covered: Tensor, settings: LossSettings) -> Tensor:
    """The wrong classes that the loss looks at, bool (B,C): J'> of equation 5, for GMMCE with J'< of equation 6.

    Of equal scores at the border all count, as the equations have it; a class in both sets counts once (equation 8
    tells nothing of classes so few); where there are no more wrong classes than asked for, all count. What is not a
    number counts too, so that the loss is none either.
    """
    if settings.name == "ce":
        return ~covered
    high = scores >= _threshold(scores, covered, settings.highest, largest=True)
    low = scores <= _threshold(scores, covered, settings.lowest, largest=False)
    chosen = high | low if settings.name == "gmmce" else high
    return ~covered & (chosen | scores.isnan())


def _threshold(scores: Tensor, covered: Tensor, k: int, largest: bool) -> Tensor:
    """The k-th highest or lowest score (B,1) of the classes that are not covered; beyond all where they are fewer."""
    beyond = -torch.inf if largest else torch.inf
    others = scores.masked_fill(covered, beyond)
    return others.topk(min(k, scores.shape[1]), 1, largest=largest).values[:, -1:]
