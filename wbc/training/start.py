"""The model that training starts from: weights drawn by a seed, features from ImageNet or from another model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.utils.model import freeze
from torch import nn

from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.imagenet import load_lite_weights


def untrained(card: ModelCard, config: Path, seed: int) -> nn.Module:
    """The module of a card. Raises ValueError, which names `config`, where its builder cannot make one."""
    torch.manual_seed(seed)
    try:
        return builders.build(card)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error


def start_from_imagenet(features: nn.Module, config: Path) -> list[str]:
    """Give a module of timm's its ImageNet weights in place; the names of those that it has none for.

    Raises ValueError, which names `config`, for an architecture whose weights no package has.
    """
    try:
        return load_lite_weights(features, str(getattr(features, "default_cfg", {}).get("architecture", "")))
    except ValueError as error:
        raise ValueError(f"{config}: {error}, or set imagenet to false") from error


def start_from_model(module: nn.Module, card: ModelCard, reference: str) -> None:
    """Give a module of timm's the weights of a classifier of the same architecture, in place.

    Classes that both have keep their rows of the last layer, by name; a new class begins as the mean of all of them.
    Raises ValueError where the architectures differ.
    """
    before = registry.load(registry.resolve(reference, card.task)[0], "cpu")
    known, own = before.module.state_dict(), module.state_dict()
    last = [name for name, _ in module.named_parameters() if name.startswith("classifier.")]
    if [n for n in own if n not in last and (n not in known or known[n].shape != own[n].shape)] or not last:
        raise ValueError(f"{reference!r} is of another architecture: {before.card.arguments}, not {card.arguments}")
    rows = [before.card.classes.index(c) if c in before.card.classes else None for c in card.classes]
    for name in last:
        mean = known[name].mean(0)
        known[name] = torch.stack([mean if row is None else known[name][row] for row in rows])
    module.load_state_dict({name: tensor.clone() for name, tensor in known.items()})


def freeze_parts(features: nn.Module, frozen: Sequence[str]) -> None:
    """Fix the named parts of a module of timm's at their weights and batch statistics, in place.

    Raises AttributeError for a part that it has not.
    """
    if frozen:  # timm freezes all where nothing is named
        freeze(features, [part.removesuffix(".") for part in frozen])  # type: ignore[no-untyped-call]
