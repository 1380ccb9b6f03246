"""A laboratory's cells teach a classifier's body, not its last layer alone: it learns on, its old data beside them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wbc.configs import read_toml
from wbc.datasets.cell_names import covers
from wbc.datasets.crops import Crops
from wbc.models.cards import ModelRef
from wbc.models.last_layer import with_lower_levels
from wbc.models.registry import LoadedModel
from wbc.taxonomy import Taxonomy, load_taxonomy
from wbc.training.checkpoint import CHECKPOINT
from wbc.training.classifier import ClassifierConfig, learn, untaught
from wbc.training.classifier_data import read_crops
from wbc.training.last_layer import cross_validate, folds, is_right
from wbc.training.measure import count_windows, crop_probabilities
from wbc.training.taught_layer import fitted, named_cells, own_layer

FEWEST_CELLS = 200
# About six CPU-minutes at 128 px with stem and three stages frozen: minutes on two idle cores.
STEPS, BATCH, RATE, WARM_UP, AVERAGE = 300, 32, 3e-4, 30, 0.98
SHARE = 0.4  # of the cells that are drawn are the laboratory's
HELD_OUT, OLD_HELD_OUT = 5, 10  # one in so many
MOST_OLD = 100  # of a data set are held out
MOST_LOST = 0.02  # of the old cells may be named wrong that were right


@dataclass(frozen=True, slots=True)
class Replay:
    """What a classifier has learnt from: the training config that names it, and the folder with its data sets."""

    config: Path
    data: Path


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What each way to teach is worth on cells that it was not taught with, and the classifier whose body learnt on.

    `names` are those of the laboratory's cells held out, `held_out` (M,) their numbers among all; whether each is right
    (M,) as `before`, with a new `layer` alone, and by the `body`, which gives them the class probabilities `chances`
    (M,C). `old` are the parts right, in the same order, of `n_old` cells of the data sets `sets`.
    """

    names: tuple[str, ...]
    before: NDArray[np.bool_]
    layer: NDArray[np.bool_]
    body: NDArray[np.bool_]
    chances: NDArray[np.floating]
    held_out: NDArray[np.int64]
    n_old: int
    old: tuple[float, float, float]
    sets: tuple[str, ...]
    module: nn.Module

    @property
    def gains(self) -> bool:
        """Whether more of the laboratory's cells are right than by any simpler way."""
        return int(self.body.sum()) > max(int(self.before.sum()), int(self.layer.sum()))

    @property
    def forgets(self) -> bool:
        """Whether the body loses more than MOST_LOST of the old cells."""
        before, _, body = self.old
        return body < before - MOST_LOST

    @property
    def pays(self) -> bool:
        """Whether the body is worth it."""
        return self.gains and not self.forgets


def try_body(cells: Crops, model: LoadedModel, ref: ModelRef, replay: Replay) -> Trial:
    """Train the body of a classifier on a laboratory's cells and what it has learnt from before; judged on others.

    One in HELD_OUT of the cells, evenly of each kind, is in no training, and neither is one in OLD_HELD_OUT of the old
    ones, at most MOST_OLD of a data set, which the classifier itself may have learnt from. Layers that the config
    freezes stay as they are. Raises ValueError, naming the config, where it cannot be used or is of other classes, or
    where its taxonomy does not know a name.
    """
    plan = _plan(replay.config, model, ref)
    taxonomy = load_taxonomy(plan.taxonomy)
    covers(cells.labels, taxonomy, plan.classes)  # names that it does not know are refused before anything is learnt
    held_out = folds(cells.labels, HELD_OUT)[0]
    taught, others = cells.take(_without(held_out, cells)), cells.take(held_out)
    every = [read_crops(spec, replay.data) for spec in plan.data]
    kept = [folds(part.labels, max(OLD_HELD_OUT, len(part.labels) // MOST_OLD))[0] for part in every]
    old = [part.take(which) for part, which in zip(every, kept, strict=True)]
    parts = [part.take(_without(which, part)) for part, which in zip(every, kept, strict=True)]
    weights = [spec.weight for spec in plan.data]
    own = sum(weights) * SHARE / (1 - SHARE)
    drawn = list(zip([*parts, taught], [*weights, own], strict=True))
    ways = model, as_taught(model, taught, taxonomy), replace(model, module=_learnt(plan, drawn, replay.config, model))
    before, layer = (named_right(others, way, taxonomy) for way in ways[:2])
    chances = crop_probabilities(others, ways[2])
    old_right = [np.concatenate([named_right(part, way, taxonomy) for part in old]).mean() for way in ways]
    return Trial(
        others.labels,
        before,
        layer,
        is_right(chances, covers(others.labels, taxonomy, plan.classes)),
        chances,
        held_out,
        n_old=sum(len(part.labels) for part in old),
        old=(float(old_right[0]), float(old_right[1]), float(old_right[2])),
        sets=tuple(spec.set or spec.format for spec in plan.data),
        module=ways[2].module,
    )


def _plan(config: Path, model: LoadedModel, ref: ModelRef) -> ClassifierConfig:
    """The config's plan for a few steps from the model on, seen through its window."""
    plan, card = read_toml(config, ClassifierConfig), model.card
    if plan.classes != card.classes or plan.builder != card.builder:
        raise ValueError(f"{config}: classes or builder are not those of {ref.reference}, which is to learn on")
    loop = replace(
        plan.loop, steps=STEPS, batch=BATCH, rate=RATE, warm_up=WARM_UP, average=AVERAGE, checkpoint_every=STEPS
    )
    seen = replace(
        plan.crop, input_px=card.input_px, um_per_px=card.um_per_px, even_light=card.even_light, hue=card.hue
    )
    return replace(
        plan, start=ref.reference, model=card.arguments, loop=loop, crop=seen, sampler="root", may_lack=plan.classes
    )


def _learnt(
    plan: ClassifierConfig, drawn: Sequence[tuple[Crops, float]], config: Path, model: LoadedModel
) -> nn.Module:
    _, module = untaught(plan, config)
    with TemporaryDirectory(prefix="wbc-adapt-") as folder:
        (checkpoint := Path(folder) / "body" / CHECKPOINT).parent.mkdir()
        _, trained = learn(module.to(model.device), plan, drawn, config, checkpoint)
    return trained.requires_grad_(False)


def as_taught(model: LoadedModel, cells: Crops, taxonomy: Taxonomy) -> LoadedModel:
    """The model with a last layer fitted to cells, where cells held out from the fit gain by it."""
    fuller = with_lower_levels(model)
    named = named_cells(count_windows(cells, model.card), cells.labels, fuller, taxonomy)
    gain = cross_validate(named, own_layer(fuller))
    return fitted(fuller, named, gain.strength) if gain.pays else model


def named_right(cells: Crops, model: LoadedModel, taxonomy: Taxonomy) -> NDArray[np.bool_]:
    """Whether each cell's likeliest class is one that its label covers (N,)."""
    return is_right(crop_probabilities(cells, model), covers(cells.labels, taxonomy, model.card.classes))


def _without(which: NDArray[np.int64], cells: Crops) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(len(cells.labels)), which)
