"""A classifier with a new last layer, fitted to named cells: from their crops to the model."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wbc.cells.classify import features
from wbc.datasets.cell_names import covers
from wbc.models.last_layer import feature_groups, last_layer, with_last_layer
from wbc.models.registry import LoadedModel
from wbc.taxonomy import Taxonomy
from wbc.training.last_layer import LastLayer, NamedCells, fit


def named_cells(
    crops: NDArray[np.uint8],
    names: Sequence[str],
    model: LoadedModel,
    taxonomy: Taxonomy,
    others: NDArray[np.uint8] | None = None,
) -> NamedCells:
    """Crops uint8 (N,S,S,3) of the model's window and their N names, as its last layer gets them.

    `others` are crops (M,S,S,3) of cells of the same laboratory that have no name. Raises ValueError for a name that
    the taxonomy does not know, or that covers no class of the model's.
    """
    known = covers(names, taxonomy, model.card.classes)
    unnamed = None if others is None else features(others, model)
    return NamedCells(features(crops, model), known, tuple(names), feature_groups(model), unnamed)


def own_layer(model: LoadedModel) -> LastLayer:
    """A classifier's last layer, as the fit takes it."""
    layer = last_layer(model)
    return LastLayer(layer.weight.double().cpu().numpy(), layer.bias.double().cpu().numpy())


def fitted(model: LoadedModel, cells: NamedCells, strength: float) -> LoadedModel:
    """The model with the last layer that its own becomes by these cells."""
    new = fit(cells, own_layer(model), strength)
    return replace(model, module=with_last_layer(model, new.weight, new.bias))
