"""The recipe for classifiers: single cells, coarse labels through the taxonomy's tree, ImageNet features."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.norm_act import unfreeze_batch_norm_2d
from torch import Tensor, nn

from wbc import __version__
from wbc.cells.appearance import KnownLooks, appearance
from wbc.configs import read_toml
from wbc.datasets.augment import Jitter
from wbc.datasets.crops import Crops
from wbc.models import registry
from wbc.models.cards import ModelCard
from wbc.models.imagenet import MEAN, STD
from wbc.models.reference_cells import inherited_cells, keep_reference_cells
from wbc.models.registry import LoadedModel
from wbc.revision import code_revision, file_revision
from wbc.taxonomy import NOT_A_WHITE_CELL, label_matrix, load_taxonomy
from wbc.training.checkpoint import CHECKPOINT, alone_in
from wbc.training.classifier_data import CropData, CropSamples, CropSettings, Sampler, read_crops
from wbc.training.kind_losses import LossSettings, tree_losses
from wbc.training.loop import Lesson, LoopSettings, fit
from wbc.training.measure import classifier_figures, count_windows, measure_classifier
from wbc.training.processes import processes_for, rank, train_together
from wbc.training.sides import check_sides
from wbc.training.start import check_shown, freeze_parts, start_from_imagenet, start_from_model, untrained
from wbc.types import Threshold

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """A classifier's training config, table by table.

    `model` holds the builder's arguments; `imagenet` says whether the backbone starts from packaged ImageNet weights,
    `start` names a classifier to start from instead, and `frozen` parts that keep what they start from, batch
    statistics included (timm's names, with or without a dot at their end, behind `backbone.` where a builder wraps it).
    A model of the same classes hands on its reference cells: what strangers' cells were named by its recipe.
    `loss` and `sampler` say what a wrong answer costs and how often each kind is drawn.
    Coarse labels of `data` train through the tree of `taxonomy`. A cell that the classifier names with a probability
    below `threshold` is unidentified; on a slide that looks like none of `data`, below `stranger_threshold`, which may
    be a table of the names that are given there (`python -m benchmarks.promise` chooses them). `watch` is measured now
    and then while it learns, `measure` at the end. The data must show every class but those that they `may_lack`.
    """

    classes: tuple[str, ...]
    builder: str
    taxonomy: str
    model: dict[str, Any]
    loop: LoopSettings
    data: tuple[CropData, ...]
    name: str = "wbc-classifier"
    threshold: float = 0.0
    stranger_threshold: Threshold | None = None
    imagenet: bool = True
    start: str = ""
    frozen: tuple[str, ...] = ()
    crop: CropSettings = field(default_factory=CropSettings)
    jitter: Jitter = field(default_factory=Jitter)
    loss: LossSettings = field(default_factory=LossSettings)
    sampler: Sampler = "root"
    may_lack: tuple[str, ...] = ()
    measure: tuple[CropData, ...] = ()
    watch: tuple[CropData, ...] = ()
    credits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(measured.set for measured in (*self.measure, *self.watch)):
            raise ValueError("each [[measure]] needs a name for its figures: set")
        if len(self.classes) < 2:
            raise ValueError(f"classes are {list(self.classes)}: a classifier needs two to tell apart")
        if isinstance(self.stranger_threshold, dict):
            for name in self.stranger_threshold:
                load_taxonomy(self.taxonomy).cell_type(name)  # one that is not known would never be given, in silence

    def card(self, source: Path) -> ModelCard:
        """The card of a classifier that is trained by this config, whose file is `source`."""
        return ModelCard(
            name=self.name,
            version=__version__,
            task="classifier",
            builder=self.builder,
            arguments=self.model,
            classes=self.classes,
            um_per_px=self.crop.um_per_px,
            input_px=self.crop.input_px,
            mean=MEAN,
            std=STD,
            sha256="",
            threshold=self.threshold,
            stranger_threshold=self.stranger_threshold,
            even_light=self.crop.even_light,
            hue=self.crop.hue,
            dataset=file_revision(source),
            code_revision=code_revision(),
            credits=self.credits,
        )


def train_classifier(config: Path, data: Path, out: Path, device: str, processes: int = 0) -> ModelCard:
    """Train a classifier as `config` says on the data sets below `data` and save it in `out`; resumes what is there.

    `processes` train together, 0 means one for each GPU. Raises ValueError for a config or data that cannot be used,
    naming the file, and where another training writes to `out`.
    """
    return train_as_planned(read_toml(config, ClassifierConfig), config, data, out, device, processes)


def train_as_planned(
    plan: ClassifierConfig, config: Path, data: Path, out: Path, device: str, processes: int = 0
) -> ModelCard:
    """`train_classifier` by a plan that the file `config` holds, or that was made from it."""
    check_sides("classifier", plan, data)
    n = processes_for(device, processes, plan.loop.batch)
    with alone_in(out):
        return train_together(n, device, _train, plan, config, data, out)


def _train(plan: ClassifierConfig, config: Path, data: Path, out: Path, device: str) -> ModelCard:
    card, model = untaught(plan, config)
    reference = inherited_cells(card)  # now: by the end a champion may be another
    crops = [read_crops(spec, data) for spec in plan.data]
    looks = _looks(crops, card)
    drawn = [(part, spec.weight) for part, spec in zip(crops, plan.data, strict=True)]
    watch = _watch(plan, data, card)
    digest, trained = learn(model.to(device), plan, drawn, config, out / CHECKPOINT, watch)
    card = replace(card, dataset=f"{card.dataset}, data {digest[:12]}")
    if rank():
        return card
    card = registry.save(out, trained, card, looks.arrays())
    card = replace(card, metrics=measure_classifier(plan.measure, data, out, device))
    card = registry.save(out, trained, card, looks.arrays())
    return card if reference is None else keep_reference_cells(out, reference)


def learn(
    model: nn.Module,
    plan: ClassifierConfig,
    crops: Sequence[tuple[Crops, float]],
    config: Path,
    checkpoint: Path,
    watch: Callable[[nn.Module], dict[str, float]] | None = None,
) -> tuple[str, nn.Module]:
    """Train a module by a plan on cells in memory, each part drawn by its weight; their digest, and it in eval mode.

    Raises ValueError, which names the plan's file `config`, where they do not show a class that they must.
    """
    samples, matrix = _samples(plan, crops, config)
    lesson = Lesson(samples, _stack, tree_losses(matrix, MEAN, STD, plan.loss), watch)
    trained = fit(model, lesson, plan.loop, checkpoint)
    unfreeze_batch_norm_2d(trained)  # type: ignore[no-untyped-call]  # timm's frozen ones lack a key of the state dict
    return samples.digest, trained.eval()


def _looks(crops: list[Crops], card: ModelCard) -> KnownLooks:
    """How the white cells look that the classifier learns from, data set by data set."""
    white = [np.flatnonzero(np.array(part.labels) != NOT_A_WHITE_CELL) for part in crops]
    shown = zip(crops, white, strict=True)
    return KnownLooks.of([appearance(count_windows(part, card)[rows]) for part, rows in shown if len(rows)])


def untaught(plan: ClassifierConfig, config: Path) -> tuple[ModelCard, nn.Module]:
    """The card of a plan, whose file is `config`, and the module that training starts from.

    The card names the model that this is, if it is one.
    """
    card = plan.card(config)
    model = untrained(card, config, plan.loop.seed)
    if plan.start:
        card = replace(card, parents=(start_from_model(model, card, plan.start),))
    elif plan.imagenet:
        log.info("not from ImageNet: %s", start_from_imagenet(model, config))
    try:
        freeze_parts(model, plan.frozen)
    except AttributeError as error:
        raise ValueError(f"{config}: frozen is {list(plan.frozen)}: {error}") from error
    return card, model


def _samples(
    plan: ClassifierConfig, crops: Sequence[tuple[Crops, float]], config: Path
) -> tuple[CropSamples, NDArray[np.float32]]:
    """The crops that are drawn, and which classes each of their labels covers.

    Raises ValueError where they do not show a class that they must.
    """
    labels = sorted({label for part, _ in crops for label in part.labels})
    rows = {label: i for i, label in enumerate(labels)}
    parts = [(part, rows, weight) for part, weight in crops]
    matrix = label_matrix(load_taxonomy(plan.taxonomy), plan.classes, labels)
    check_shown(plan.classes, set(np.flatnonzero(matrix.any(0)).tolist()), plan.may_lack, config)
    if plan.sampler == "balanced" and plan.loop.batch % len(labels):
        raise ValueError(
            f"{config}: loop.batch is {plan.loop.batch}: a balanced batch is a multiple of {len(labels)} kinds"
        )
    return CropSamples(parts, plan.crop, plan.jitter, plan.loop.seed, plan.sampler), matrix


def _watch(plan: ClassifierConfig, data: Path, card: ModelCard) -> Callable[[nn.Module], dict[str, float]] | None:
    """Measures an unfinished classifier on what the plan watches."""
    if not plan.watch:
        return None

    def watch(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        return classifier_figures(plan.watch, data, LoadedModel(model, card, device))

    return watch


def _stack(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([pixels for pixels, _ in samples]), torch.tensor([row for _, row in samples])
