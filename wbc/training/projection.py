"""A detector's pyramid upon fewer channels: the axes along which its maps vary most (principal components).

Whatever makes and reads the maps is composed with the projection: the pyramid's convolutions, the proposal head's and
the box head's first layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wbc.models.pyramid import LEVELS

# A level's part in the axes: the lower one is, the more cells lie on it.
LEVEL_WEIGHTS = (1.0, 0.8, 0.6, 0.4)
INNER, OUTER = "backbone.fpn.inner_blocks.{}.0", "backbone.fpn.layer_blocks.{}.0"
READERS = ("rpn.head.conv.0.0", "roi_heads.box_head.fc6")  # of the maps of all levels

State = dict[str, Tensor]


class Moments:
    """Mean and covariance of the channels of maps that are added one after another."""

    def __init__(self) -> None:
        self.n, self.total, self.products = 0, torch.zeros(()), torch.zeros(())

    def add(self, maps: Tensor) -> None:
        """Maps (B,C,H,W)."""
        rows = maps.double().permute(1, 0, 2, 3).flatten(1)
        self.n += rows.shape[1]
        self.total = self.total + rows.sum(1)
        self.products = self.products + rows @ rows.T

    @property
    def mean(self) -> Tensor:
        """(C,)"""
        return self.total / self.n

    @property
    def covariance(self) -> Tensor:
        """(C,C)"""
        return self.products / self.n - torch.outer(self.mean, self.mean)


def project(state: State, inner: Sequence[Moments], outer: Sequence[Moments], channels: int) -> None:
    """A detector's weights float64 are those of one whose maps have so many channels, in place.

    `inner` are the moments of what each level's last convolution reads, `outer` of what it makes.
    """
    axes_in, axes_out = _axes(inner, channels), _axes(outer, channels)
    for i in range(len(LEVELS)):
        _onto(state, INNER.format(i), axes_in)
        _from(state, OUTER.format(i), axes_in, inner[i].mean)
        _onto(state, OUTER.format(i), axes_out)
    weights = torch.tensor(LEVEL_WEIGHTS, dtype=torch.float64)
    mean = weights @ torch.stack([moments.mean for moments in outer]) / weights.sum()
    for reader in READERS:
        _from(state, reader, axes_out, mean)


def _axes(moments: Sequence[Moments], channels: int) -> Tensor:
    """The axes (C,channels) along which the maps of all levels vary most, each level's spread counted as one."""
    spreads = [m.covariance / torch.trace(m.covariance) for m in moments]
    weights = torch.tensor(LEVEL_WEIGHTS, dtype=torch.float64)
    vectors = torch.linalg.eigh(torch.tensordot(weights, torch.stack(spreads), 1)).eigenvectors
    return torch.flip(vectors, [1])[:, :channels].contiguous()


def _onto(state: State, layer: str, axes: Tensor) -> None:
    """A convolution makes the coordinates along `axes` (C,c) of what it made."""
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    state[weight] = torch.einsum("oc,oikl->cikl", axes, state[weight])
    state[bias] = axes.T @ state[bias]


def _from(state: State, layer: str, axes: Tensor, mean: Tensor) -> None:
    """A layer reads coordinates along `axes` (C,c); of what they leave it gets the mean (C,) alone."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    taps = weight.reshape(len(weight), len(axes), -1)  # of a kernel, or of a region's bins
    left = mean - axes @ (axes.T @ mean)
    state[f"{layer}.bias"] = bias + torch.einsum("oit,i->o", taps, left)
    thin = torch.einsum("oit,ic->oct", taps, axes)
    state[f"{layer}.weight"] = (
        thin.reshape(len(weight), axes.shape[1], *weight.shape[2:]) if weight.ndim > 2 else thin.flatten(1)
    )
