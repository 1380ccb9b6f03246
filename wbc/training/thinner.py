"""A detector with fewer channels that sees what matters of a wider one's: a start to learn on from.

Its pyramid is projected (`wbc.training.projection`). Of channels behind a ReLU those are kept which, weighed anew, come
nearest to what all of them say (`wbc.training.elimination`): of those that the body's inverted residuals expand to,
block after block, of the proposal head's and of both layers of the box head. As many as there were change nothing.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wbc.models import builders
from wbc.models.expansions import expanding_blocks, expansions, keep
from wbc.models.faster_rcnn import FasterRCNN
from wbc.models.pyramid import LEVELS, PyramidBackbone
from wbc.models.registry import LoadedModel
from wbc.training.elimination import Kept, Regression
from wbc.training.projection import Moments, State, project

PLACES = 3_000  # of a map whose channels are looked at
OBJECTNESS = 9.0  # how much more a proposal's objectness weighs than the corners of its box
CLASSES = 4.0  # how much more a region's classes weigh than the corners of its boxes


class Widths(NamedTuple):
    """How many channels a Faster R-CNN's parts have.

    Those of its pyramid, the hidden ones of its proposal head and of its box head, and those that each inverted
    residual of its body expands to.
    """

    pyramid: int
    proposals: int
    head: int
    expanded: tuple[int, ...] = ()

    def hold(self, other: "Widths") -> bool:
        """Whether none of the other's is larger."""
        pairs = zip((*self[:3], *self.expanded), (*other[:3], *other.expanded), strict=False)
        return len(self.expanded) == len(other.expanded) and all(theirs <= own for own, theirs in pairs)


def widths_of(module: nn.Module) -> Widths | None:
    """A Faster R-CNN's widths; None of any other module."""
    if not (isinstance(module, FasterRCNN) and type(module.backbone) is PyramidBackbone):
        return None
    hidden, boxes = module.rpn.head.conv[0][0], module.roi_heads.box_head
    return Widths(module.backbone.out_channels, hidden.out_channels, boxes.fc6.out_features, expansions(module.body))


@torch.no_grad()
def thinner(wide: LoadedModel, widths: Widths, pictures: Sequence[Tensor]) -> LoadedModel:
    """A detector of these widths that is as near to `wide` as they allow on pictures float32 (3,H,W).

    Raises ValueError where `wide` is no Faster R-CNN on a pyramid, or has fewer channels.
    """
    before = widths_of(wide.module)
    if before is None:
        raise ValueError(f"{wide.card.name}: builder {wide.card.builder!r} has no pyramid that can be made thinner")
    if not before.hold(widths):
        raise ValueError(f"{wide.card.name}: {before} get no thinner by {widths}")
    module: Any = copy.deepcopy(wide.module).eval().requires_grad_(False)
    _fewer_expanded(module, widths.expanded, pictures)
    seen = Seen(module, pictures)
    state = {name: tensor.double() for name, tensor in module.state_dict().items()}
    if widths.pyramid < before.pyramid:
        project(state, seen.inner, seen.outer, widths.pyramid)
    _fewer_hidden(state, seen.proposals, widths.proposals)
    _narrower_head(state, seen.regions, widths.head)
    card = replace(wide.card, arguments={**wide.card.arguments, **_arguments(widths, before)})
    made = builders.build(card)
    own = made.state_dict()
    made.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()})
    return replace(wide, module=made.eval().requires_grad_(False), card=card)


def _arguments(widths: Widths, before: Widths) -> dict[str, Any]:
    """What a card says of widths."""
    own = {"pyramid_channels": widths.pyramid, "proposal_channels": widths.proposals, "head_width": widths.head}
    return own if widths.expanded == before.expanded else {**own, "expanded_channels": list(widths.expanded)}


class Seen:
    """What passes through a detector on some pictures float32 (3,H,W).

    Moments of its maps by level, before and behind the pyramid's last convolution; the proposal head's hidden channels
    and what is said by them; the first hidden channels (N,C) of the box head, before their ReLU.
    """

    def __init__(self, module: Any, pictures: Sequence[Tensor]) -> None:
        self.inner, self.outer = ([Moments() for _ in LEVELS] for _ in range(2))
        self.proposals = Regression()
        self._head, self._dice = module.rpn.head, torch.Generator().manual_seed(0)
        rows: list[Tensor] = []
        with _listening(
            *((block, self._of_level(i)) for i, block in enumerate(module.backbone.fpn.layer_blocks)),
            (module.rpn.head.conv, self._of_proposals),
            (module.roi_heads.box_head.fc6, lambda _, made: rows.append(made.float())),
        ):
            for picture in pictures:
                module([picture])
        self.regions = torch.cat(rows)

    def _of_level(self, i: int) -> Any:
        def heard(given: Tensor, made: Tensor) -> None:
            self.inner[i].add(given)
            self.outer[i].add(made)

        return heard

    def _of_proposals(self, _: Tensor, made: Tensor) -> None:
        hidden = _channels(made)
        hidden = hidden[:, _places(hidden.shape[1], self._dice)]
        layers = (self._head.cls_logits, self._head.bbox_pred)
        said = [layer.weight[:, :, 0, 0].double() @ hidden + layer.bias.double()[:, None] for layer in layers]
        self.proposals.add(hidden, torch.cat(said))


def _fewer_expanded(module: Any, expanded: tuple[int, ...], pictures: Sequence[Tensor]) -> None:
    """Of the channels that each inverted residual expands to so many remain, in place.

    A block learns what the whole body's says from what the thinner ones before it make.
    """
    whole, dice = copy.deepcopy(module.body), torch.Generator().manual_seed(0)
    pixels = [module.transform([picture])[0].tensors for picture in pictures]
    for block, before, n in zip(expanding_blocks(module.body), expanding_blocks(whole), expanded, strict=True):
        if n == block.conv_pwl.in_channels:
            continue
        regression = Regression()
        for picture in pixels:
            _, wanted = _projected(whole, before, picture)
            hidden, _ = _projected(module.body, block, picture)
            places = _places(hidden.shape[1], dice)
            regression.add(hidden[:, places], wanted[:, places])
        kept = regression.keep(n)
        keep(block, kept.channels)
        block.conv_pwl.weight.copy_(kept.weight[..., None, None])
        block.bn3.running_mean -= kept.bias.to(block.bn3.running_mean.dtype)


def _projected(body: nn.Module, block: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What a block's projection reads (C,N) and makes (O,N) of pixels, at all places."""
    heard: list[Tensor] = []
    with _listening((block.conv_pwl, lambda given, made: heard.extend(map(_channels, (given, made))))):
        body(pixels)
    hidden, made = heard
    return hidden, made


def _fewer_hidden(state: State, proposals: Regression, n: int) -> None:
    """Of the proposal head's hidden channels so many remain, and what reads them is fitted anew."""
    hidden, readers = "rpn.head.conv.0.0", ("rpn.head.cls_logits", "rpn.head.bbox_pred")
    if n == len(state[f"{hidden}.bias"]):
        return
    sizes = [len(state[f"{reader}.bias"]) for reader in readers]
    kept = proposals.keep(n, torch.repeat_interleave(torch.tensor([OBJECTNESS, 1.0]), torch.tensor(sizes)))
    _refit(state, hidden, readers, kept)


def _narrower_head(state: State, regions: Tensor, n: int) -> None:
    """Of both layers of the box head so many channels remain, and what reads them is fitted anew."""
    fc6, fc7 = "roi_heads.box_head.fc6", "roi_heads.box_head.fc7"
    if n == len(state[f"{fc6}.bias"]):
        return
    hidden = regions.double().relu().T
    wanted = state[f"{fc7}.weight"] @ hidden + state[f"{fc7}.bias"][:, None]
    first = Regression()
    first.add(hidden, wanted)
    kept = first.keep(n)
    _refit(state, fc6, [fc7], kept)
    thin = (kept.weight @ hidden[kept.channels] + kept.bias[:, None]).relu()
    readers = [f"roi_heads.box_predictor.{name}" for name in ("cls_score", "bbox_pred")]
    sizes = [len(state[f"{reader}.bias"]) for reader in readers]
    second = Regression()
    said = [state[f"{reader}.weight"] @ wanted.relu() + state[f"{reader}.bias"][:, None] for reader in readers]
    second.add(thin, torch.cat(said))
    ground = 4  # the corners of what is ground come first, and nobody reads them
    matter = torch.repeat_interleave(
        torch.tensor([CLASSES, 0.0, 1.0]), torch.tensor([sizes[0], ground, sizes[1] - ground])
    )
    _refit(state, fc7, readers, second.keep(n, matter))


def _refit(state: State, layer: str, readers: Sequence[str], kept: Kept) -> None:
    """Of what a layer makes those channels remain that are `kept`, and its readers, 1×1 or linear, are the fit's."""
    for name in (f"{layer}.weight", f"{layer}.bias"):
        state[name] = state[name][kept.channels]
    sizes = [len(state[f"{reader}.bias"]) for reader in readers]
    for reader, weight, bias in zip(readers, *(torch.split(t, sizes) for t in kept[1:]), strict=True):
        taps = [1] * (state[f"{reader}.weight"].ndim - 2)
        state[f"{reader}.weight"], state[f"{reader}.bias"] = weight.reshape(*weight.shape, *taps), bias


@contextmanager
def _listening(*heard: tuple[nn.Module, Callable[[Tensor, Tensor], Any]]) -> Iterator[None]:
    """What modules are given and make within the block goes to the function beside each."""

    def hook(hear: Callable[[Tensor, Tensor], Any]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def heard_by(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
            hear(given[0], made)

        return heard_by

    handles = [module.register_forward_hook(hook(hear)) for module, hear in heard]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _channels(maps: Tensor) -> Tensor:
    """Maps (B,C,H,W) -> (C,B·H·W)."""
    return maps.double().transpose(0, 1).flatten(1)


def _places(n: int, dice: torch.Generator) -> Tensor:
    """The numbers of some of `n` places."""
    return torch.randperm(n, generator=dice)[:PLACES]
