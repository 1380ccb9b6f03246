"""The recipe for detectors: mosaics of labelled pictures, ImageNet features, calibrated scores."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timm.layers.norm_act import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import Tensor, nn

from wbc import __version__
from wbc.configs import read_toml
from wbc.datasets.augment import Jitter
from wbc.datasets.mosaic import MosaicSettings, Source
from wbc.models import registry
from wbc.models.cards import ModelCard
from wbc.models.imagenet import MEAN, STD
from wbc.models.trainable import TrainableDetector
from wbc.revision import code_revision, file_revision
from wbc.training.calibration import CalibrationSettings, calibrate
from wbc.training.detector_data import BoxData, DetectorData, Mosaics, RenderedData, load_sources, render_source
from wbc.training.loop import LoopSettings, fit
from wbc.training.measure import measure_detector
from wbc.training.start import freeze_parts, start_from_imagenet, untrained

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """A detector's training config, table by table.

    `model` holds the builder's arguments; `imagenet` says whether the backbone starts from packaged ImageNet weights,
    `frozen` which of its parts keep them: timm's names, with or without a dot at their end.
    """

    classes: tuple[str, ...]
    builder: str
    um_per_px: float
    model: dict[str, Any]
    loop: LoopSettings
    data: tuple[DetectorData, ...]
    name: str = "wbc-detector"
    imagenet: bool = True
    frozen: tuple[str, ...] = ()
    mosaic: MosaicSettings = field(default_factory=MosaicSettings)
    jitter: Jitter = field(default_factory=Jitter)
    rendered: RenderedData | None = None
    calibrate: CalibrationSettings = field(default_factory=CalibrationSettings)
    measure: tuple[BoxData, ...] = ()
    credits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not all(measured.set for measured in self.measure):
            raise ValueError("each [[measure]] needs a name for its figures: set")

    def card(self, source: Path) -> ModelCard:
        """The card of a detector that is trained by this config, whose file is `source`."""
        return ModelCard(
            name=self.name,
            version=__version__,
            task="detector",
            builder=self.builder,
            arguments=self.model,
            classes=self.classes,
            um_per_px=self.um_per_px,
            input_px=0,
            mean=MEAN,
            std=STD,
            sha256="",
            dataset=file_revision(source),
            code_revision=code_revision(),
            credits=self.credits,
        )


def train_detector(config: Path, data: Path, out: Path, device: str) -> ModelCard:
    """Train a detector as `config` says on the data sets below `data` and save it in `out`; resumes what is there.

    Raises ValueError for a config or data that cannot be used, naming the file.
    """
    plan = read_toml(config, DetectorConfig)
    card = plan.card(config)
    model = _untrained(plan, card, config)
    samples = Mosaics(_sources(plan, data), plan.mosaic, plan.jitter, plan.loop.seed)
    trained = fit(model.to(device), samples, list, detection_losses, plan.loop, out / "checkpoint.pt")
    assert isinstance(trained, TrainableDetector)
    unfreeze_body(trained)
    shifts = calibrate(trained, samples, plan.loop.steps * plan.loop.batch, plan.classes, plan.calibrate)
    log.info("shifted by %s", shifts)
    card = registry.save(out, trained, card)
    return registry.save(out, trained, replace(card, metrics=measure_detector(plan.measure, data, out, device)))


def _untrained(plan: DetectorConfig, card: ModelCard, config: Path) -> nn.Module:
    model = untrained(card, config, plan.loop.seed)
    if not isinstance(model, TrainableDetector):
        raise ValueError(f"{config}: builder is {card.builder!r}, which cannot be trained")
    if plan.imagenet:
        start_from_imagenet(model.body, config)
    try:
        freeze_body(model, plan.frozen)
    except AttributeError as error:
        raise ValueError(f"{config}: frozen is {list(plan.frozen)}: {error}") from error
    return model


def _sources(plan: DetectorConfig, data: Path) -> list[Source]:
    sources = load_sources(plan.data, data, plan.classes)
    return sources if plan.rendered is None else [*sources, render_source(plan.rendered, plan.classes)]


def freeze_body(model: TrainableDetector, frozen: Sequence[str]) -> None:
    """Fix batch norms at their statistics (a batch of two has none) and the named parts of the body, in place.

    Frozen batch norms of timm lack a key of the state dict: `unfreeze_body` before a model is saved.
    """
    freeze_batch_norm_2d(model.body)  # type: ignore[no-untyped-call]
    freeze_parts(model.body, frozen)


def unfreeze_body(model: TrainableDetector) -> None:
    """Batch norms as they were before `freeze_body`, in place, in eval mode."""
    unfreeze_batch_norm_2d(model.body)  # type: ignore[no-untyped-call]
    model.body.eval()


def detection_losses(model: nn.Module, batch: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """A `losses` function for `loop.fit`: what a `TrainableDetector` in train mode returns."""
    device = next(model.parameters()).device
    pixels = [p.to(device) for p, _ in batch]
    targets = [{k: v.to(device) for k, v in t.items()} for _, t in batch]
    losses: dict[str, Tensor] = model(pixels, targets)
    return losses
