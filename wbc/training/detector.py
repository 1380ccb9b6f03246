"""The recipe for detectors: mosaics of labelled pictures, ImageNet features, calibrated scores."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timm.layers.norm_act import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import Tensor, nn

from wbc import __version__
from wbc.configs import read_toml
from wbc.datasets.augment import Jitter
from wbc.datasets.mosaic import MosaicSettings
from wbc.models import registry
from wbc.models.cards import ModelCard, ModelRef
from wbc.models.imagenet import MEAN, STD
from wbc.models.registry import LoadedModel
from wbc.models.trainable import TrainableDetector
from wbc.revision import code_revision, file_revision
from wbc.training.calibration import CalibrationSettings, calibrate
from wbc.training.checkpoint import CHECKPOINT, alone_in
from wbc.training.detector_data import (
    DetectorData,
    Mosaics,
    RenderedData,
    load_sources,
    render_source,
)
from wbc.training.distillation import Distillation, DistillationSettings
from wbc.training.loop import Lesson, LoopSettings, fit
from wbc.training.measure import detector_figures, measure_detector
from wbc.training.processes import processes_for, rank, train_together
from wbc.training.sides import check_sides
from wbc.training.start import check_shown, freeze_parts, start_from_imagenet, start_from_model, untrained
from wbc.training.thinner import thinner, widths_of
from wbc.training.whole_pictures import WholePictures, WholeSettings, load_whole

log = logging.getLogger(__name__)
Batch = list[tuple[Tensor, dict[str, Tensor]]]
Losses = Callable[[nn.Module, Batch], dict[str, Tensor]]
THINNER_PICTURES = 16  # by whose maps a wider pyramid that a training starts from is made thinner


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """A detector's training config, table by table.

    `model` holds the builder's arguments, `imagenet` says whether the backbone starts from packaged ImageNet weights.
    `start` names a detector to start from instead, which may be wider (`wbc.training.thinner`); arguments that
    `model` does not name are its. `distil` names one whose answers it learns beside the labels. `frozen` are the parts
    of the backbone that keep what they start from: timm's names, with or without a dot at their end. Pictures are laid
    together to mosaics, or drawn `whole`. `watch` is measured now and then while it learns, `measure` at the end. The
    data must show every class but those that they `may_lack`. The scale of whole pictures is measured where `um_per_px`
    does not tell it.
    """

    classes: tuple[str, ...]
    builder: str
    model: dict[str, Any]
    loop: LoopSettings
    data: tuple[DetectorData, ...]
    um_per_px: float | None = None
    name: str = "wbc-detector"
    imagenet: bool = True
    start: str = ""
    distil: DistillationSettings | None = None
    frozen: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    mosaic: MosaicSettings = field(default_factory=MosaicSettings)
    whole: WholeSettings | None = None
    jitter: Jitter = field(default_factory=Jitter)
    rendered: RenderedData | None = None
    calibrate: CalibrationSettings = field(default_factory=CalibrationSettings)
    measure: tuple[DetectorData, ...] = ()
    watch: tuple[DetectorData, ...] = ()
    credits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(measured.set for measured in (*self.measure, *self.watch)):
            raise ValueError("each [[measure]] needs a name for its figures: set")
        if self.um_per_px is None and self.whole is None:
            raise ValueError("um_per_px is missing, the scale that mosaics are counted at")
        if self.calibrate.as_teacher and self.distil is None:
            raise ValueError("calibrate.as_teacher names classes, and there is no teacher: distil")
        if unknown := sorted(set(self.calibrate.as_teacher) - set(self.classes)):
            raise ValueError(f"calibrate.as_teacher names {', '.join(unknown)}: no class")

    def card(self, source: Path, um_per_px: float) -> ModelCard:
        """The card of a detector for this scale that is trained by this config, whose file is `source`."""
        return ModelCard(
            name=self.name,
            version=__version__,
            task="detector",
            builder=self.builder,
            arguments=self.model,
            classes=self.classes,
            um_per_px=um_per_px,
            input_px=0,
            mean=MEAN,
            std=STD,
            sha256="",
            dataset=file_revision(source),
            code_revision=code_revision(),
            credits=self.credits,
        )


def train_detector(config: Path, data: Path, out: Path, device: str, processes: int = 0) -> ModelCard:
    """Train a detector as `config` says on the data sets below `data` and save it in `out`; resumes what is there.

    `processes` train together, 0 means one for each GPU. Raises ValueError for a config or data that cannot be used,
    naming the file, and where another training writes to `out`.
    """
    return train_as_planned(read_toml(config, DetectorConfig), config, data, out, device, processes)


def train_as_planned(
    plan: DetectorConfig, config: Path, data: Path, out: Path, device: str, processes: int = 0
) -> ModelCard:
    """`train_detector` by a plan that the file `config` holds, or that was made from it."""
    check_sides("detector", plan, data)
    n = processes_for(device, processes, plan.loop.batch)
    with alone_in(out):
        return train_together(n, device, _train, plan, config, data, out)


def _train(plan: DetectorConfig, config: Path, data: Path, out: Path, device: str) -> ModelCard:
    plan = _completed(plan)
    samples, scale = _samples(plan, config, data)
    card, model = _untrained(plan, plan.card(config, scale), config, samples)
    card = replace(card, dataset=f"{card.dataset}, data {samples.digest[:12]}")
    teacher = None if plan.distil is None else registry.resolve(plan.distil.teacher, "detector")[0]
    card, losses = _losses(plan, teacher, card, config, model)
    lesson = Lesson(samples, list, losses, _watch(plan, data, card), teacher.digest if teacher else "")
    trained = fit(model.to(device), lesson, plan.loop, out / CHECKPOINT)
    assert isinstance(trained, TrainableDetector)
    unfreeze_body(trained)
    if rank():
        return card
    wanted = registry.load(teacher, device).module if teacher and plan.calibrate.as_teacher else None
    shifts = calibrate(trained, samples, plan.loop.steps * plan.loop.batch, plan.classes, plan.calibrate, wanted)
    log.info("shifted by %s", shifts)
    card = registry.save(out, trained, card)
    return registry.save(out, trained, replace(card, metrics=measure_detector(plan.measure, data, out, device)))


def _completed(plan: DetectorConfig) -> DetectorConfig:
    """The plan with all arguments of the model that it starts from, where it names no others."""
    if not plan.start:
        return plan
    before = registry.resolve(plan.start, "detector")[1]
    return replace(plan, model={**before.arguments, **plan.model}) if before.builder == plan.builder else plan


def _untrained(
    plan: DetectorConfig, card: ModelCard, config: Path, samples: Mosaics | WholePictures
) -> tuple[ModelCard, nn.Module]:
    """The module that training starts from, and its card, which names the model that it starts from, if any.

    A wider one than the card's is first made thinner by the samples.
    """
    model = untrained(card, config, plan.loop.seed)
    if not isinstance(model, TrainableDetector):
        raise ValueError(f"{config}: builder is {card.builder!r}, which cannot be trained")
    if plan.start:
        own = widths_of(model)

        def fitted(start: LoadedModel) -> LoadedModel:
            before = widths_of(start.module)
            if own is None or before is None or before == own or not before.hold(own):
                return start
            return thinner(start, own, [samples[i][0] for i in range(THINNER_PICTURES)])

        card = replace(card, parents=(start_from_model(model, card, plan.start, fitted),))
    elif plan.imagenet:
        without = start_from_imagenet(model.body, config)
        if without:
            raise ValueError(f"{config}: no ImageNet weights fit {without[0]}: name a start, or no expanded_channels")
    try:
        freeze_body(model, plan.frozen, norms=bool(plan.start) or plan.imagenet)
    except AttributeError as error:
        raise ValueError(f"{config}: frozen is {list(plan.frozen)}: {error}") from error
    return card, model


def _losses(
    plan: DetectorConfig, teacher: ModelRef | None, card: ModelCard, config: Path, model: nn.Module
) -> tuple[ModelCard, Losses]:
    """What is to shrink, and the card, which names the teacher, if any."""
    if plan.distil is None or teacher is None:
        return card, detection_losses
    try:
        distillation = Distillation(registry.load(teacher, "cpu"), plan.distil.weight, card, model)
    except ValueError as error:
        raise ValueError(f"{config}: {error}") from error

    def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return distillation(model, *on_device_of(model, batch))

    return replace(card, parents=tuple(dict.fromkeys((*card.parents, teacher)))), losses


def _samples(plan: DetectorConfig, config: Path, data: Path) -> tuple[Mosaics | WholePictures, float]:
    """What is drawn, and its scale in µm per px. Raises ValueError where it does not show a class that it must."""
    samples: Mosaics | WholePictures
    if plan.whole is not None:
        samples = load_whole(plan.data, data, plan.classes, plan.whole, plan.loop.seed)
        scale = plan.um_per_px or samples.um_per_px
    else:
        sources = load_sources(plan.data, data, plan.classes)
        sources += [] if plan.rendered is None else [render_source(plan.rendered, plan.classes)]
        samples, scale = Mosaics(sources, plan.mosaic, plan.jitter, plan.loop.seed), plan.um_per_px or 0
    check_shown(plan.classes, {label - 1 for label in samples.labels_shown}, plan.may_lack, config)
    return samples, scale


def _watch(plan: DetectorConfig, data: Path, card: ModelCard) -> Callable[[nn.Module], dict[str, float]] | None:
    """Measures an unfinished detector on what the plan watches."""
    if not plan.watch:
        return None

    def watch(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        return detector_figures(plan.watch, data, LoadedModel(model, card, device))

    return watch


def freeze_body(model: TrainableDetector, frozen: Sequence[str], *, norms: bool = True) -> None:
    """Fix batch norms at their statistics (a batch of two has poor ones) and the named parts of the body, in place.

    Without `norms` batch norms learn, as they must where nothing was learnt before: they have no statistics yet.
    Frozen batch norms of timm lack a key of the state dict: `unfreeze_body` before a model is saved.
    """
    if norms:
        freeze_batch_norm_2d(model.body)  # type: ignore[no-untyped-call]
    freeze_parts(model.body, frozen)


def unfreeze_body(model: TrainableDetector) -> None:
    """Batch norms as they were before `freeze_body`, in place, in eval mode."""
    unfreeze_batch_norm_2d(model.body)  # type: ignore[no-untyped-call]
    model.body.eval()


def detection_losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The losses of a `Lesson`: what a `TrainableDetector` in train mode returns."""
    losses: dict[str, Tensor] = model(*on_device_of(model, batch))
    return losses


def on_device_of(model: nn.Module, batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch's pictures and targets where the model is."""
    device = next(model.parameters()).device
    return [p.to(device) for p, _ in batch], [{k: v.to(device) for k, v in t.items()} for _, t in batch]
