"""The last layer of a classifier: it turns features into the logits of classes, and can be exchanged by itself."""

from copy import deepcopy
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wbc.models.crop_classifier import LOWER_STRIDES, MultiLevelClassifier, levels_below
from wbc.models.registry import LoadedModel, ModelError


@runtime_checkable
class TeachableClassifier(Protocol):
    """A module that keeps features and last layer apart, as timm's image classifiers do."""

    def forward_features(self, crops: Tensor) -> Tensor:
        """Crops (N,3,S,S) -> maps of features, or whatever `forward_head` takes."""

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps of features -> logits (N,C), or with `pre_logits` what the last layer gets, (N,F)."""

    def get_classifier(self) -> nn.Module:
        """The last layer."""


def features_of(model: LoadedModel, crops: Tensor) -> Tensor:
    """What the last layer gets of crops (N,3,S,S), prepared as the card says: (N,F). Raises ModelError as below."""
    module = _teachable(model)
    return module.forward_head(module.forward_features(crops), pre_logits=True)


def last_layer(model: LoadedModel) -> nn.Linear:
    """A classifier's last layer. Raises ModelError where its architecture has none that is linear."""
    layer = _teachable(model).get_classifier()
    if not isinstance(layer, nn.Linear):
        raise ModelError(f"{model.card.name}: its last layer is a {type(layer).__name__}, not a linear one")
    return layer


def with_last_layer(model: LoadedModel, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> nn.Module:
    """A copy of the module whose last layer has this weight (C,F) and bias (C,).

    Raises ValueError where their shapes are not those of the old ones.
    """
    old = last_layer(model)
    if weight.shape != tuple(old.weight.shape) or bias.shape != (old.out_features,):
        raise ValueError(f"weight {weight.shape} and bias {bias.shape} for a layer of {tuple(old.weight.shape)}")
    module = deepcopy(model.module)
    layer = last_layer(LoadedModel(module, model.card, model.device))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return module


def feature_groups(model: LoadedModel) -> tuple[int, ...]:
    """The widths of the groups of what the last layer gets, in their order: one, where the module tells of none."""
    groups: tuple[int, ...] = getattr(model.module, "groups", (last_layer(model).in_features,))
    return groups


def with_lower_levels(model: LoadedModel) -> LoadedModel:
    """The same classifier as a `MultiLevelClassifier`: its last layer is also told what the network sees lower down.

    The new features weigh nothing yet, so that its answers are the same but for rounding. What is no crop classifier,
    has them already, or tells no such maps is given back as it is.
    """
    card = model.card
    if card.builder != "crop_classifier" or isinstance(model.module, MultiLevelClassifier):
        return model
    if len(levels_below(model.module)) != len(LOWER_STRIDES):
        return model
    old, fuller = last_layer(model), MultiLevelClassifier(deepcopy(model.module), len(card.classes))
    with torch.no_grad():
        fuller.classifier.weight.zero_()[:, : old.in_features] = old.weight
        fuller.classifier.bias.copy_(old.bias)
    arguments = {**card.arguments, "lower_levels": True}
    module = fuller.to(model.device).eval().requires_grad_(False)
    return replace(model, module=module, card=replace(card, arguments=arguments))


def _teachable(model: LoadedModel) -> TeachableClassifier:
    if not isinstance(model.module, TeachableClassifier):
        raise ModelError(f"{model.card.name}: builder {model.card.builder!r} does not tell features from a last layer")
    return model.module
