"""Cells of known type beside a classifier's weights: what it makes of cells from laboratories that it has not seen."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.models.cards import ModelCard
from wbc.models.registry import CARD, REFERENCE_CELLS, ModelError, ModelRef, card_content, locate, read_card, sha256_of
from wbc.storage.atomic import staged


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceCells:
    """Cells whose type a person told, with the class probabilities float16 (N,C) that a classifier gave them.

    Columns are in the order of its card's classes. The recipe of the classifier gave them without having seen anything
    of the cell's laboratory. `own` is the laboratory that a classifier was taught for, None where it was for none: its
    cells were named by what had been taught without them. Names come of probabilities, a taxonomy and a threshold, so
    that this serves every taxonomy. `weights` float32 (N,) say how many cells of its laboratory each stands for, where
    some were likelier to be chosen than others; each stands for as many where there are none.

    Raises ValueError where lengths differ, a probability or a weight is none, or `own` has no cell.
    """

    probabilities: NDArray[np.float16]
    cell_types: tuple[str, ...]
    laboratories: tuple[str, ...]
    own: str | None = None
    weights: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n, p = len(self.cell_types), self.probabilities
        if p.ndim != 2 or not len(p) == n == len(self.laboratories):
            raise ValueError(f"{n} types, {len(self.laboratories)} laboratories, probabilities {p.shape}")
        if p.dtype != np.float16 or not ((p >= 0) & (p <= 1)).all():
            raise ValueError("probabilities are not float16 between 0 and 1")
        if self.weights is not None and not (self.weights.shape == (n,) and (self.weights > 0).all()):
            raise ValueError(f"weights are not {n} numbers over 0")
        if self.own is not None and self.own not in self.laboratories:
            raise ValueError(f"no cell of the own laboratory {self.own!r}")

    def to_bytes(self) -> bytes:
        """The cells as a safetensors file."""
        from safetensors.numpy import save

        types, type_of = np.unique(np.array(self.cell_types, str), return_inverse=True)
        places, place_of = np.unique(np.array(self.laboratories, str), return_inverse=True)
        tensors: dict[str, NDArray[Any]] = {
            "probabilities": np.ascontiguousarray(self.probabilities),
            "cell_type": type_of.astype(np.int16),
            "laboratory": place_of.astype(np.int16),
        }
        if self.weights is not None:
            tensors["weight"] = self.weights
        words = {"cell_types": types.tolist(), "laboratories": places.tolist(), "own": self.own}
        return bytes(save(tensors, {"wbc": json.dumps(words, sort_keys=True)}))

    @staticmethod
    def from_bytes(content: bytes) -> "ReferenceCells":
        """The cells of a safetensors file. Raises ValueError where it holds none."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            tensors = load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            words = json.loads(header["__metadata__"]["wbc"])
            return ReferenceCells(
                tensors["probabilities"],
                tuple(words["cell_types"][i] for i in tensors["cell_type"]),
                tuple(words["laboratories"][i] for i in tensors["laboratory"]),
                words["own"],
                tensors.get("weight"),
            )
        except (SafetensorError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"no reference cells: {error}") from error

    def at_most(self, cells: int, seed: int = 0) -> "ReferenceCells":
        """At most `cells` of each type of each laboratory, drawn by `seed`, in their order."""
        kept: Counter[tuple[str, str]] = Counter()
        chosen = np.zeros(len(self.cell_types), bool)
        for i in np.random.default_rng(seed).permutation(len(self.cell_types)):
            group = self.laboratories[i], self.cell_types[i]
            chosen[i] = kept[group] < cells
            kept[group] += 1
        return self.take(chosen)

    def take(self, which: NDArray[np.bool_]) -> "ReferenceCells":
        """The cells at a mask; `own` stays where it has any among them."""
        places = tuple(np.array(self.laboratories, object)[which])
        types = tuple(np.array(self.cell_types, object)[which])
        weights = None if self.weights is None else self.weights[which]
        own = self.own if self.own in places else None
        return ReferenceCells(self.probabilities[which], types, places, own, weights)

    @property
    def elsewhere(self) -> "ReferenceCells":
        """The cells of all laboratories but the own one."""
        return self.take(np.array([place != self.own for place in self.laboratories], bool))

    def including(self, cells: "ReferenceCells") -> "ReferenceCells":
        """These cells and those of one more laboratory, of the same classes; it is the own one if it is so there."""
        weights = [np.ones(len(c.cell_types), np.float32) if c.weights is None else c.weights for c in (self, cells)]
        return ReferenceCells(
            np.concatenate([self.probabilities, cells.probabilities]),
            (*self.cell_types, *cells.cell_types),
            (*self.laboratories, *cells.laboratories),
            cells.own,
            np.concatenate(weights),
        )


def keep_reference_cells(folder: Path, cells: ReferenceCells) -> ModelCard:
    """Write reference cells beside a saved classifier and their digest into its card, which is returned.

    They are part of the model: its digest is another then. Raises ValueError where they are of other classes or the
    model is no classifier, ModelError where there is none.
    """
    card = read_card(str(folder))
    if card.task != "classifier" or cells.probabilities.shape[1] != len(card.classes):
        raise ValueError(f"{cells.probabilities.shape[1]} columns for the {len(card.classes)} classes of a {card.task}")
    content = cells.to_bytes()
    card = replace(card, reference_sha256=sha256_of(content))
    with staged({UPath(folder / REFERENCE_CELLS): content, UPath(folder / CARD): card_content(card)}, durable=False):
        pass
    return card


def inherited_cells(card: ModelCard) -> ReferenceCells | None:
    """The reference cells of the one model that a classifier learnt on from; None where it has none, or other classes.

    They say how cells of laboratories that were left out were named before, which nobody has measured since.
    """
    if len(card.parents) != 1 or read_card(card.parents[0].reference).classes != card.classes:
        return None
    return read_reference_cells(card.parents[0])


def read_reference_cells(ref: ModelRef) -> ReferenceCells | None:
    """The reference cells of a model; None where it has none. Raises ModelError as `reference_content` does."""
    content = reference_content(ref)
    if content is None:
        return None
    try:
        return ReferenceCells.from_bytes(content)
    except ValueError as error:
        raise ModelError(f"{ref.reference!r}: {error}") from error


def reference_content(ref: ModelRef) -> bytes | None:
    """The file of a model's reference cells; None where it has none.

    Raises ModelError where the model is not what `ref` was pinned to.
    """
    card = read_card(ref.reference)
    if card.digest != ref.digest:
        raise ModelError(f"{ref.reference!r} is {card.digest[:12]}… here, the count began with {ref.digest[:12]}…")
    return (locate(ref.reference) / REFERENCE_CELLS).read_bytes() if card.reference_sha256 else None
