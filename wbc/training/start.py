"""The model that training starts from: weights drawn by a seed, features from ImageNet."""

from collections.abc import Sequence
from pathlib import Path

import torch
from timm.utils.model import freeze
from torch import nn

from wbc.models import builders
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


def freeze_parts(features: nn.Module, frozen: Sequence[str]) -> None:
    """Fix the named parts of a module of timm's at their weights and batch statistics, in place.

    Raises AttributeError for a part that it has not.
    """
    if frozen:  # timm freezes all where nothing is named
        freeze(features, [part.removesuffix(".") for part in frozen])  # type: ignore[no-untyped-call]
