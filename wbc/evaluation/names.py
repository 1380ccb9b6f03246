"""A classifier against labelled cells: what it calls each, as a count does, and what that is worth by kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wbc.cells.classify import classify
from wbc.cells.naming import name_cells
from wbc.datasets.crops import Crops
from wbc.evaluation.frozen import FrozenSet, is_named_white, kind_of, top_kinds
from wbc.evaluation.noise import Told
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.taxonomy import Taxonomy
from wbc.training.measure import crop_probabilities

OTHER = "other"


@dataclass(frozen=True, slots=True, eq=False)
class NamedSet:
    """Cells of one set: N `labels`, what a count calls them (`names`), and the likeliest type with its probability.

    `units` int64 (N,) are the fields that they are in, of `n_units`, or the cells themselves. `left_out` is how many
    white cells have a label that tells no kind.
    """

    name: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    likeliest: tuple[str, ...]
    scores: NDArray[np.float32]
    units: NDArray[np.int64]
    n_units: int
    left_out: int = 0

    def told(self, taxonomy: Taxonomy, kinds: Sequence[str] | None = None, *, likeliest: bool = False) -> Told:
        """The cells by kind, and whether each is called its label or finer: by a count, or by what is likeliest."""
        kinds = top_kinds(self.labels, taxonomy) if kinds is None else kinds
        own = np.array([kind_of(label, kinds, taxonomy) or OTHER for label in self.labels], object)
        return Told(own, self.right(taxonomy, likeliest=likeliest), self.units, self.n_units)

    def right(self, taxonomy: Taxonomy, *, likeliest: bool = False) -> NDArray[np.bool_]:
        """Whether each cell (N,) is called its label or something finer."""
        pairs = zip(self.likeliest if likeliest else self.names, self.labels, strict=True)
        return np.array([taxonomy.is_a(name, label) for name, label in pairs], bool)


def name_set(one: FrozenSet, model: LoadedModel, taxonomy: Taxonomy) -> NamedSet:
    """Name the labelled cells of a set: single ones where it has them, else the white cells of its fields.

    Raises FieldError for a picture that cannot be read, ValueError for a label that the taxonomy does not know.
    """
    if one.crops is not None:
        return _named_crops(one.name, one.crops, model, taxonomy)
    return _named_fields(one, model, taxonomy)


def _named_crops(name: str, crops: Crops, model: LoadedModel, taxonomy: Taxonomy) -> NamedSet:
    if unknown := sorted({label for label in crops.labels if not taxonomy.knows(label)}):
        raise ValueError(f"{name}: taxonomy {taxonomy.name} does not know {', '.join(unknown)}")
    kept = np.array([is_named_white(label, taxonomy) for label in crops.labels], bool)
    white = Crops(crops.pixels[kept], tuple(np.array(crops.labels, object)[kept]))
    chances = crop_probabilities(white, model)
    units = np.arange(len(white.labels))
    return _named(name, white.labels, chances, (units, len(units)), model.card, taxonomy)


def _named_fields(one: FrozenSet, model: LoadedModel, taxonomy: Taxonomy) -> NamedSet:
    labels: list[str] = []
    chances = [np.zeros((0, len(model.card.classes)), np.float32)]
    units, left_out = [np.zeros(0, np.int64)], 0
    for i, (picture, um_per_px, pixels) in enumerate(one.read()):
        own = [j for j, label in enumerate(picture.labels) if is_named_white(label, taxonomy)]
        left_out += picture.labels.count("wbc")
        labels += [picture.labels[j] for j in own]
        chances.append(classify(pixels, picture.boxes[own], um_per_px, model).probabilities)
        units.append(np.full(len(own), i))
    every = np.concatenate(chances), (np.concatenate(units), len(one.pictures))
    return _named(one.name, tuple(labels), *every, model.card, taxonomy, left_out)


def _named(
    name: str,
    labels: tuple[str, ...],
    chances: NDArray[np.float32],
    units: tuple[NDArray[np.int64], int],
    card: ModelCard,
    taxonomy: Taxonomy,
    left_out: int = 0,
) -> NamedSet:
    counted = name_cells(chances, card.classes, taxonomy, card.threshold)
    likeliest = name_cells(chances, card.classes, taxonomy, 0.0)
    names = tuple(counted.types), tuple(likeliest.types)
    return NamedSet(name, labels, *names, likeliest.scores, *units, left_out)
