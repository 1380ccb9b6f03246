"""A detector with a thinner pyramid that sees what matters of a wider one's maps: a start to learn on from.

The maps of all levels are projected upon the axes along which they vary most (principal components), and whatever makes
and reads them is composed with the projection: the pyramid's convolutions, the proposal head's and the box head's first
layer. Of the proposal head's hidden channels, behind a ReLU, those are kept which, weighed anew, come nearest to its
answers. As many axes as there were channels change nothing; with half as many a detector takes 0.6 of the time.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wbc.models import builders
from wbc.models.faster_rcnn import FasterRCNN
from wbc.models.pyramid import LEVELS, PyramidBackbone
from wbc.models.registry import LoadedModel

# A level's part in the axes: the lower one is, the more cells lie on it.
LEVEL_WEIGHTS = (1.0, 0.8, 0.6, 0.4)
PLACES = 6_000  # of a map whose hidden channels are looked at
RIDGE = 1e-6
OBJECTNESS = 3.0  # how much more a proposal's objectness weighs than the corners of its box
INNER, OUTER, HEAD = "backbone.fpn.inner_blocks.{}.0", "backbone.fpn.layer_blocks.{}.0", "rpn.head.conv.0.0"
ANSWERS = ("rpn.head.cls_logits", "rpn.head.bbox_pred")
FC6 = "roi_heads.box_head.fc6"


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


class Seen:
    """What a detector's maps are on some pictures float32 (3,H,W): moments by level, and hidden channels (C,N)."""

    def __init__(self, module: Any, pictures: Sequence[Tensor], seed: int = 0) -> None:
        self.inner, self.outer = ([Moments() for _ in LEVELS] for _ in range(2))
        self._hidden: list[Tensor] = []
        self._dice = torch.Generator().manual_seed(seed)
        handles = [
            block.register_forward_hook(self._of_level(i)) for i, block in enumerate(module.backbone.fpn.layer_blocks)
        ]
        handles.append(module.rpn.head.conv.register_forward_hook(self._of_head))
        try:
            with torch.inference_mode():
                for picture in pictures:
                    module([picture])
        finally:
            for handle in handles:
                handle.remove()

    def _of_level(self, i: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            self.inner[i].add(given[0])
            self.outer[i].add(made)

        return hook

    def _of_head(self, _: nn.Module, __: tuple[Tensor, ...], made: Tensor) -> None:
        places = made.double().permute(1, 0, 2, 3).flatten(1)
        self._hidden.append(places[:, torch.randperm(places.shape[1], generator=self._dice)[:PLACES]])

    @property
    def hidden(self) -> Tensor:
        """The proposal head's hidden channels (C,N) at places of all maps."""
        return torch.cat(self._hidden, 1)


class Widths(NamedTuple):
    """How many channels a Faster R-CNN's pyramid has, and how many hidden ones its proposal head."""

    pyramid: int
    proposals: int

    def hold(self, other: "Widths") -> bool:
        """Whether neither of the other's is larger."""
        return other.pyramid <= self.pyramid and other.proposals <= self.proposals


def widths_of(module: nn.Module) -> Widths | None:
    """A Faster R-CNN's widths; None of any other module."""
    if isinstance(module, FasterRCNN) and type(module.backbone) is PyramidBackbone:
        return Widths(module.backbone.out_channels, module.rpn.head.conv[0][0].out_channels)
    return None


def thinner(wide: LoadedModel, widths: Widths, pictures: Sequence[Tensor]) -> LoadedModel:
    """A detector of these widths that is as near to `wide` as they allow on pictures float32 (3,H,W).

    Raises ValueError where `wide` is no Faster R-CNN on a pyramid, or has fewer channels.
    """
    before = widths_of(wide.module)
    if before is None:
        raise ValueError(f"{wide.card.name}: builder {wide.card.builder!r} has no pyramid that can be made thinner")
    if not before.hold(widths):
        raise ValueError(f"{wide.card.name}: {before} get no thinner by {widths}")
    channels = widths.pyramid
    seen = Seen(wide.module.eval(), pictures)
    arguments = {"pyramid_channels": channels, "proposal_channels": widths.proposals}
    card = replace(wide.card, arguments={**wide.card.arguments, **arguments})
    state = {name: tensor.double() for name, tensor in wide.module.state_dict().items()}
    inner, outer = (_axes(moments, channels) for moments in (seen.inner, seen.outer))
    for i in range(len(LEVELS)):
        _onto(state, INNER.format(i), inner)
        _from(state, OUTER.format(i), inner, seen.inner[i].mean)
        _onto(state, OUTER.format(i), outer)
    weights = torch.tensor(LEVEL_WEIGHTS, dtype=torch.float64)
    mean = weights @ torch.stack([moments.mean for moments in seen.outer]) / weights.sum()
    _from(state, HEAD, outer, mean)
    _fewer_hidden(state, seen.hidden, widths.proposals)
    _from(state, FC6, outer, mean)
    made = builders.build(card)
    own = made.state_dict()
    made.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()})
    return replace(wide, module=made.eval().requires_grad_(False), card=card)


def _axes(moments: Sequence[Moments], channels: int) -> Tensor:
    """The axes (C,channels) along which the maps of all levels vary most, each level's spread counted as one."""
    spreads = [m.covariance / torch.trace(m.covariance) for m in moments]
    weights = torch.tensor(LEVEL_WEIGHTS, dtype=torch.float64)
    vectors = torch.linalg.eigh(torch.tensordot(weights, torch.stack(spreads), 1)).eigenvectors
    return torch.flip(vectors, [1])[:, :channels].contiguous()


def _onto(state: dict[str, Tensor], layer: str, axes: Tensor) -> None:
    """A convolution makes the coordinates along `axes` (C,c) of what it made."""
    weight, bias = f"{layer}.weight", f"{layer}.bias"
    state[weight] = torch.einsum("oc,oikl->cikl", axes, state[weight])
    state[bias] = axes.T @ state[bias]


def _from(state: dict[str, Tensor], layer: str, axes: Tensor, mean: Tensor) -> None:
    """A layer reads coordinates along `axes` (C,c); of what they leave it gets the mean (C,) alone."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    taps = weight.reshape(len(weight), len(axes), -1)  # of a kernel, or of a region's bins
    left = mean - axes @ (axes.T @ mean)
    state[f"{layer}.bias"] = bias + torch.einsum("oit,i->o", taps, left)
    thin = torch.einsum("oit,ic->oct", taps, axes)
    state[f"{layer}.weight"] = (
        thin.reshape(len(weight), axes.shape[1], *weight.shape[2:]) if weight.ndim > 2 else thin.flatten(1)
    )


def _fewer_hidden(state: dict[str, Tensor], hidden: Tensor, channels: int) -> None:
    """Of the proposal head's hidden channels (C,N) so many remain, and what reads them is fitted anew."""
    if len(hidden) == channels:
        return
    scales = (OBJECTNESS, 1.0)
    weights = [state[f"{name}.weight"] for name in ANSWERS]
    answers = torch.cat([s * w[:, :, 0, 0] for s, w in zip(scales, weights, strict=True)]) @ hidden
    rows = torch.cat([hidden, torch.ones_like(hidden[:1])])  # the last is for the bias
    products, wanted = rows @ rows.T / rows.shape[1], rows @ answers.T / rows.shape[1]
    size = (answers**2).mean(1)

    def solved(among: list[int]) -> tuple[Tensor, Tensor]:
        own = products[among][:, among] + RIDGE * torch.eye(len(among), dtype=torch.float64)
        inverse = torch.linalg.inv(own)
        return inverse, inverse @ wanted[among]

    kept = list(range(len(hidden)))
    while len(kept) > channels:  # without the channel that the answers miss least
        inverse, fit = solved([*kept, len(hidden)])
        missed = (fit[:-1] ** 2 / torch.diag(inverse)[:-1, None] / size).sum(1)
        kept.pop(int(missed.argmin()))
    fit = solved([*kept, len(hidden)])[1].T
    state[f"{HEAD}.weight"], state[f"{HEAD}.bias"] = state[f"{HEAD}.weight"][kept], state[f"{HEAD}.bias"][kept]
    parts = torch.split(fit, [len(w) for w in weights])
    for name, scale, part in zip(ANSWERS, scales, parts, strict=True):
        state[f"{name}.weight"] = part[:, :-1, None, None] / scale
        state[f"{name}.bias"] = state[f"{name}.bias"] + part[:, -1] / scale
