"""Which hidden channels of a network the others can stand in for: fewer of them, and what reads them fitted anew.

Luo 2017, "ThiNet: A Filter Level Pruning Method", section 3.2: channels are chosen by what the next layer makes of
them, and its weights come from least squares. Here one is left out at a time, that which the fit misses least.
"""

from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-6  # of the channels' mean square: dead channels are alike


class Kept(NamedTuple):
    """The numbers `channels` (n) that remain, and the `weight` (O,n) and `bias` (O) of what reads them."""

    channels: Tensor
    weight: Tensor
    bias: Tensor


class Regression:
    """The sums by which channels tell answers, of places that are added bit by bit."""

    def __init__(self) -> None:
        self.n = 0
        self.products = self.wanted = self.squares = self.total = torch.zeros(())

    def add(self, channels: Tensor, answers: Tensor) -> None:
        """Channels (C,N) and what the next layer is to make of them (O,N) at N places."""
        rows, answers = _with_ones(channels), answers.double()
        self.n += rows.shape[1]
        self.products = self.products + rows @ rows.T
        self.wanted = self.wanted + rows @ answers.T
        self.squares = self.squares + (answers**2).sum(1)
        self.total = self.total + answers.sum(1)

    def keep(self, n: int, weights: Tensor | None = None) -> Kept:
        """`n` of the channels, by which the answers are missed least; these weigh by `weights` (O), if any.

        What is missed of an answer counts beside its own spread.
        """
        products, wanted = self.products / self.n, self.wanted / self.n
        spread = (self.squares / self.n - (self.total / self.n) ** 2).clamp(min=1e-12)
        importance = (torch.ones_like(spread) if weights is None else weights.double()) / spread
        products = products + RIDGE * products.diagonal()[:-1].mean() * torch.eye(len(products), dtype=torch.float64)
        among = torch.arange(len(products))  # the last is the bias
        inverse = torch.linalg.inv(products)
        fit = inverse @ wanted
        while len(among) - 1 > n:
            missed = (fit[:-1] ** 2 @ importance) / inverse.diagonal()[:-1]
            least = int(missed.argmin())
            rest = torch.arange(len(among)) != least
            column, own = inverse[:, least], inverse[least, least]
            fit = (fit - torch.outer(column / own, fit[least]))[rest]
            inverse = (inverse - torch.outer(column, column) / own)[rest][:, rest]
            among = among[rest]
        fit = torch.linalg.solve(products[among][:, among], wanted[among])
        return Kept(among[:-1], fit[:-1].T.contiguous(), fit[-1].contiguous())


def _with_ones(channels: Tensor) -> Tensor:
    return torch.cat([channels.double(), torch.ones(1, channels.shape[1], dtype=torch.float64)])
