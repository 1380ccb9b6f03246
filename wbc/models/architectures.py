"""Architectures by name: a card's `builder` names one of these, its `arguments` are the settings' fields.

torchvision and timm, which take seconds to import, are imported by the builders that stand on them.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from wbc.models import crop_classifier, dark_regions
from wbc.models.cards import ModelCard


def _faster_rcnn(card: ModelCard) -> nn.Module:
    from wbc.models import faster_rcnn

    settings = faster_rcnn.FasterRCNNSettings(**_tuples(card.arguments))
    module: nn.Module = faster_rcnn.build(len(card.classes), card.mean, card.std, settings)
    return module


def _crop_classifier(card: ModelCard) -> nn.Module:
    return crop_classifier.build(len(card.classes), crop_classifier.CropClassifierSettings(**card.arguments))


def _dark_regions(card: ModelCard) -> nn.Module:
    return dark_regions.DarkRegions(**card.arguments)


BUILDERS: dict[str, Callable[[ModelCard], nn.Module]] = {
    "faster_rcnn": _faster_rcnn,
    "crop_classifier": _crop_classifier,
    "dark_regions": _dark_regions,
}


def build(card: ModelCard) -> nn.Module:
    """The untrained module that a card describes, in eval mode.

    Raises ValueError where the builder is unknown or cannot do with the card's arguments.
    """
    if card.builder not in BUILDERS:
        raise ValueError(f"builder {card.builder!r} is none of {sorted(BUILDERS)}")
    try:
        return BUILDERS[card.builder](card).eval()
    except (TypeError, RuntimeError) as error:  # timm's word for a backbone it does not know
        raise ValueError(f"builder {card.builder!r} cannot do with {card.arguments}: {error}") from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
