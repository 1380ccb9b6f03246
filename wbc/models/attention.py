"""Soft attention whose queries are an LSTM's, and the local search that it leads (Wang 2021, "Proposed model")."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # an LSTM's: hidden and cell (B,hidden)


def attention_weights(query: Tensor, keys: Tensor, beta: Tensor | float, mask: Tensor) -> Tensor:
    """How much each place is attended to, α (B,N), by equations 1 and 2.

    `query` (B,d), `keys` (B,N,d), `mask` M (B,N). Equation 1: β_α = β · softmax(QKᵀ / √d). Equation 2:
    α = softmax(β_α × M). Both softmaxes are over the N places.
    """
    similar = torch.einsum("bd,bnd->bn", query, keys) / math.sqrt(query.shape[1])
    return (beta * similar.softmax(1) * mask).softmax(1)


class SoftAttention(nn.Module):
    """A context out of a set of features, by what an LSTM's hidden state asks for (equations 1 to 3).

    Keys and values are the features themselves, as the paper has it; the query is a linear map of the hidden state to
    their width. The paper says neither what β is nor M. Here β is learned and in proportion to the number of places: a
    softmax over N of them is about 1/N, so that without it the second softmax would level everything. M is 1 where
    a place may be attended to and 0 where it has been seen: that puts a place seen below all others.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, features)
        self.sharpness = nn.Parameter(torch.zeros(()))  # a logarithm: β stays positive

    def forward(self, hidden: Tensor, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden state (B,hidden), features (B,N,C), mask (B,N) -> context (B,C) by equation 3, and α (B,N)."""
        beta = self.sharpness.exp() * features.shape[1]
        alpha = attention_weights(self.query(hidden), features, beta, mask)
        return torch.einsum("bn,bnc->bc", alpha, features), alpha


class AttentiveLSTM(nn.Module):
    """One step of Table 2: the attentive state of the features, and what the LSTM makes of it."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.attention = SoftAttention(features, hidden)
        self.lstm = nn.LSTMCell(features, hidden)

    def start(self, n: int, like: Tensor) -> State:
        """h₀ and c₀ of `n` sequences: zeros, as the paper does not say."""
        zeros = like.new_zeros(n, self.lstm.hidden_size)
        return zeros, zeros

    def forward(self, state: State, features: Tensor, mask: Tensor) -> tuple[State, Tensor]:
        """The state before, features (B,N,C), mask (B,N) -> the state after, and the attention α (B,N)."""
        context, alpha = self.attention(state[0], features, mask)
        return self.lstm(context, state), alpha


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """The local search: an LSTM of `hidden` units, which looks at one region of `region` by `region` places a step.

    `most_looks` bounds the steps; 0 means every region, so that no cell is lost for want of a look.
    """

    hidden: int = 128
    region: int = 8
    most_looks: int = 0

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.region < 1 or self.most_looks < 0:
            raise ValueError(f"hidden and region are at least 1, most_looks at least 0: {self}")


@dataclass(frozen=True, slots=True)
class Looks:
    """What a search saw: at each place of the map the hidden state (B,H,W,hidden) of the look at it, zeros without one.

    `order` int64 (B,H,W) is the number of that look from 0, -1 without one; `stride` the px of a place.
    """

    states: Tensor
    order: Tensor
    stride: int

    def local(self, proposals: list[Tensor]) -> list[Tensor]:
        """The proposals (R,4) of each picture whose middle was looked at."""
        return [p[self.order[i][self._places(p)] >= 0] for i, p in enumerate(proposals)]

    def states_at(self, boxes: list[Tensor]) -> Tensor:
        """The states (sum of R,hidden) of the looks at the middles of the boxes (R,4) of each picture."""
        return torch.cat([self.states[i][self._places(b)] for i, b in enumerate(boxes)])

    def _places(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self.order.shape[1:]
        middles = ((boxes[:, :2] + boxes[:, 2:]) / 2 / self.stride).long()
        return middles[:, 1].clamp(0, height - 1), middles[:, 0].clamp(0, width - 1)


class LocalSearch(nn.Module):
    """Regions of a picture pinpointed one after the other, each by the feature with the highest attention.

    "The local RPN proposes candidate RoIs from a pinpointing region located in sequence by the attention mechanism."
    The regions are those of a fixed grid: thus the steps are bounded by their number, and none is looked at twice.
    A step's region is that of the unseen place with the highest attention; then M of its places is 0. What the paper
    leaves open is how the sequence meets the two branches: here the hidden state of the look at a region joins what
    the heads know of every proposal in it. Which place is highest passes no gradient; the states do.
    """

    def __init__(self, features: int, settings: SearchSettings, stride: int) -> None:
        super().__init__()
        self.step = AttentiveLSTM(features, settings.hidden)
        self.settings, self.stride = settings, stride

    def forward(self, features: Tensor) -> Looks:
        """A map (B,C,H,W) -> what was seen of it."""
        n, _, height, width = features.shape
        places = features.flatten(2).transpose(1, 2)
        regions = self._regions(height, width, features.device)
        count = int(regions.max()) + 1
        state = self.step.start(n, features)
        order = torch.full((n, height * width), -1, device=features.device)
        states = features.new_zeros(n, height * width, self.settings.hidden)
        for look in range(min(count, self.settings.most_looks or count)):
            unseen = order < 0
            state, alpha = self.step(state, places, unseen.to(places))
            highest = alpha.detach().masked_fill(~unseen, -1).argmax(1)
            pinpointed = regions[None] == regions[highest][:, None]
            order = order.masked_fill(pinpointed, look)
            states = torch.where(pinpointed[..., None], state[0][:, None], states)
        return Looks(states.view(n, height, width, -1), order.view(n, height, width), self.stride)

    def _regions(self, height: int, width: int, device: torch.device) -> Tensor:
        """The number of the region (H·W,) that each place belongs to."""
        side = self.settings.region
        down, across = torch.arange(height, device=device) // side, torch.arange(width, device=device) // side
        return (down[:, None] * -(-width // side) + across[None, :]).flatten()
