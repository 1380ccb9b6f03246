"""The model that training starts from: weights drawn by a seed, features from ImageNet or from another model."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from timm.utils.model import freeze
from torch import Tensor, nn

from wbc.models import builders, registry
from wbc.models.cards import ModelCard, ModelRef, Task
from wbc.models.crop_classifier import MultiLevelClassifier
from wbc.models.imagenet import load_lite_weights
from wbc.models.last_layer import with_lower_levels
from wbc.models.registry import LoadedModel

# Whose rows are the classes' by their names, and how many outputs stand before the first: the background's.
LAST_LAYERS: dict[Task, tuple[str, int]] = {
    "classifier": ("classifier.", 0),
    "detector": ("roi_heads.box_predictor.", 1),
}


def untrained(card: ModelCard, config: Path, seed: int) -> nn.Module:
    """The module of a card. Raises ValueError, which names `config`, where its builder cannot make one."""
    torch.manual_seed(seed)
    try:
        return builders.build(card)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error


def start_from_imagenet(features: nn.Module, config: Path) -> list[str]:
    """Give a module of timm's its ImageNet weights in place; the names of those that it has none for.

    A module that wraps one as its `backbone` is given that one's. Raises ValueError, which names `config`, for an
    architecture whose weights no package has.
    """
    features = getattr(features, "backbone", features)
    try:
        return load_lite_weights(features, str(getattr(features, "default_cfg", {}).get("architecture", "")))
    except ValueError as error:
        raise ValueError(f"{config}: {error}, or set imagenet to false") from error


def start_from_model(
    module: nn.Module,
    card: ModelCard,
    reference: str,
    fitted: Callable[[LoadedModel], LoadedModel] = lambda start: start,
) -> ModelRef:
    """Give a module the weights of a model of the same architecture, in place; the reference, pinned.

    Of a classifier with lower levels, a module without them gets the network and its part of the last layer; of one
    without, a module with them gets all, and its lower levels weigh nothing yet. Classes that both have keep their rows
    of the last layer, by name; a new class begins as the mean of all of them. `fitted` may make the model that is
    started from another one, first. Raises ValueError where the architectures differ, or there is no such model for the
    card's task.
    """
    ref, before = registry.resolve(reference, card.task)
    loaded = fitted(registry.load(ref, "cpu"))
    start = loaded.module
    if isinstance(module, MultiLevelClassifier):
        start = with_lower_levels(loaded).module
    elif isinstance(start, MultiLevelClassifier):
        start = start.network()
    known, own = dict(start.state_dict()), module.state_dict()
    last, others = LAST_LAYERS[card.task]
    rows = [name for name in own if name.startswith(last) and name in known]
    unfit = [n for n in own if n not in rows and (n not in known or known[n].shape != own[n].shape)]
    if unfit or (before.classes != card.classes and not rows):
        raise ValueError(f"{reference!r} is of another architecture: {before.arguments}, not {card.arguments}")
    for name in rows:
        known[name] = _rows_of(known[name], before.classes, card.classes, others)
    module.load_state_dict({name: tensor.clone() for name, tensor in known.items()})
    return ref


def _rows_of(tensor: Tensor, before: Sequence[str], after: Sequence[str], others: int) -> Tensor:
    """A last layer's rows for the classes `after`; `others` outputs stand before those of the classes `before`."""
    groups = tensor.reshape(others + len(before), -1, *tensor.shape[1:])
    mean = groups[others:].mean(0)
    of_class = [groups[others + before.index(c)] if c in before else mean for c in after]
    return torch.cat([*groups[:others], *of_class])


def freeze_parts(features: nn.Module, frozen: Sequence[str]) -> None:
    """Fix the named parts of a module of timm's at their weights and batch statistics, in place.

    Where a module wraps timm's as its `backbone`, names begin with that. Raises AttributeError for a part that it has
    not.
    """
    if frozen:  # timm freezes all where nothing is named
        freeze(features, [part.removesuffix(".") for part in frozen])  # type: ignore[no-untyped-call]


def check_shown(classes: Sequence[str], shown: Collection[int], may_lack: Sequence[str], config: Path) -> None:
    """Raises ValueError, which names `config`, unless the data show every class that they may not lack.

    `shown` are the numbers of classes, from 0. A class that no sample shows is unlearnt in silence.
    """
    if missing := [name for i, name in enumerate(classes) if i not in shown and name not in may_lack]:
        raise ValueError(
            f"{config}: the data have no sample of {', '.join(missing)}: add some, or leave it out of classes, "
            f"or name it in may_lack"
        )
