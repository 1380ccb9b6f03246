"""`wbc train`: a TOML config and a folder of data -> a trained model in a folder, with its card."""

import hashlib
import logging
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from upath import UPath

from wbc import __version__
from wbc.cells.classify import predict
from wbc.cells.crop import cut_square
from wbc.cells.detect import TileSettings, detect
from wbc.datasets.augment import Jitter
from wbc.datasets.crops import PATCH_PX, PATCH_UM, Crops, cut_crops, read_crop_table
from wbc.datasets.labels import red_cell_um_per_px
from wbc.datasets.mosaic import MosaicSettings
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.imagenet import load_lite_weights
from wbc.models.trainable import TrainableDetector
from wbc.revision import code_revision
from wbc.storage.images import read_field
from wbc.taxonomy import label_matrix, load_taxonomy
from wbc.training.calibration import CalibrationSettings, calibrate
from wbc.training.classifier import CropSamples, CropSettings, tree_losses
from wbc.training.detector import (
    BoxData,
    Mosaics,
    RenderedData,
    detection_losses,
    freeze,
    load_sources,
    read_boxes,
    render_source,
)
from wbc.training.loop import LoopSettings, fit
from wbc.training.metrics import average_precision, confusion, kind_accuracy

SHARED_TABLES = {"name", "classes", "builder", "model", "loop", "jitter", "data", "measure", "credits"}
MEAN = STD = (0.5, 0.5, 0.5)  # what the EfficientNet-lite weights were trained with
log = logging.getLogger(__name__)
Settings = TypeVar("Settings")


def read_config(path: Path, own: set[str]) -> dict[str, Any]:
    """A training config, with the tables of all recipes and the `own` ones of this.

    Raises ValueError, naming the file, for broken TOML and for tables and keys that nobody reads.
    """
    known = SHARED_TABLES | own
    try:
        config = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if unknown := set(config) - known:
        raise ValueError(f"{path}: unknown {sorted(unknown)}; a config has {sorted(known)}")
    if missing := {"classes", "builder", "model", "loop", "data"} - set(config):
        raise ValueError(f"{path}: {sorted(missing)} are missing")
    return config


def section(kind: Callable[..., Settings], values: Mapping[str, Any], where: str) -> Settings:
    """A settings dataclass from a TOML table. Raises ValueError, naming the table, where keys do not fit."""
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise ValueError(f"[{where}]: {error}") from error


def train_detector(config: Path, data: Path, out: Path, device: str) -> ModelCard:
    """Train a detector as `config` says on the data sets below `data` and save it in `out`; resumes what is there.

    Raises ValueError for a config or data that cannot be used, naming the file.
    """
    plan = read_config(
        config,
        {"um_per_px", "frozen", "mosaic", "rendered", "calibrate"},
    )
    classes, loop = list(plan["classes"]), section(LoopSettings, plan["loop"], "loop")
    specs = [section(BoxData, d, "data") for d in plan["data"]]
    card = _card(plan, config, "detector", float(plan["um_per_px"]), 0, plan["model"])
    model = builders.build(card)
    if not isinstance(model, TrainableDetector):
        raise ValueError(f"{config}: builder {card.builder!r} has nothing to train")
    load_lite_weights(model.body, plan["model"]["backbone"])
    frozen = tuple(plan.get("frozen", ()))
    model.train()
    freeze(model, frozen)
    sources = load_sources(specs, data, classes)
    if "rendered" in plan:
        sources.append(render_source(section(RenderedData, plan["rendered"], "rendered"), classes))
    samples = Mosaics(
        sources,
        section(MosaicSettings, plan.get("mosaic", {}), "mosaic"),
        section(Jitter, plan.get("jitter", {}), "jitter"),
        loop.seed,
    )
    trained = fit(model, samples, list, detection_losses(frozen), loop, out / "checkpoint.pt", torch.device(device))
    calibration = section(CalibrationSettings, plan.get("calibrate", {}), "calibrate")
    shifts = calibrate(trained, samples, loop.steps * loop.batch, classes, calibration)
    log.info("shifted by %s", shifts)
    card = registry.save(out, trained, card)
    return registry.save(
        out, trained, _with_metrics(card, measure_detector(plan.get("measure", []), data, out, device))
    )


def measure_detector(specs: list[dict[str, Any]], data: Path, model: Path, device: str) -> dict[str, float]:
    """AP of a saved detector on the data sets of a config's `measure` tables, each figure named by its data set."""
    ref, card = registry.resolve(str(model), "detector")
    loaded = registry.load(ref, device)
    metrics: dict[str, float] = {}
    for values in specs:
        spec = section(BoxData, {"weight": 1.0} | {k: v for k, v in values.items() if k != "set"}, "measure")
        pictures = read_boxes(spec, data)
        scale = spec.um_per_px or red_cell_um_per_px(pictures)
        truth, found = [], []
        for picture in pictures:
            pixels = read_field(UPath(picture.path))
            truth.append((picture, pixels.shape[1], pixels.shape[0]))
            found += detect([pixels], loaded, scale, 0.05, TileSettings())
        metrics |= {
            f"{values['set']} {k}": round(v, 4) for k, v in average_precision(truth, found, card.classes).items()
        }
    return metrics


def train_classifier(config: Path, data: Path, out: Path, device: str) -> ModelCard:
    """Train a classifier as `config` says on the data sets below `data` and save it in `out`; resumes what is there.

    Raises ValueError for a config or data that cannot be used, naming the file.
    """
    plan = read_config(
        config,
        {"taxonomy", "threshold", "crop"},
    )
    loop = section(LoopSettings, plan["loop"], "loop")
    crop = section(CropSettings, plan.get("crop", {}), "crop")
    card = _card(plan, config, "classifier", crop.um_per_px, crop.input_px, plan["model"])
    parts = [(read_crops(dict(d), data), float(d["weight"])) for d in plan["data"]]
    labels = sorted({label for crops, _ in parts for label in crops.labels})
    matrix = label_matrix(load_taxonomy(plan["taxonomy"]), list(plan["classes"]), labels)
    rows = {label: i for i, label in enumerate(labels)}
    model = builders.build(card)
    log.info("untrained: %s", load_lite_weights(model, plan["model"]["backbone"]))
    samples = CropSamples(
        [(crops, rows, weight) for crops, weight in parts],
        crop,
        section(Jitter, plan.get("jitter", {}), "jitter"),
        loop.seed,
    )
    losses = tree_losses(matrix, MEAN, STD)
    trained = fit(model, samples, _stack, losses, loop, out / "checkpoint.pt", torch.device(device))
    card = registry.save(out, trained, card)
    return registry.save(
        out, trained, _with_metrics(card, measure_classifier(plan.get("measure", []), data, out, device))
    )


def measure_classifier(specs: list[dict[str, Any]], data: Path, model: Path, device: str) -> dict[str, float]:
    """Accuracy and macro recall of a saved classifier on the data sets of a config's `measure` tables."""
    metrics: dict[str, float] = {}
    for values in specs:
        matrix = classifier_confusion(read_crops(values, data), str(model), device)
        metrics |= {f"{values['set']} {k}": round(v, 4) for k, v in kind_accuracy(matrix).items()}
    return metrics


def classifier_confusion(crops: Crops, reference: str, device: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Confusion (true, named) int64 (C,C) of a classifier on single cells, seen as a count sees them."""
    ref, card = registry.resolve(reference, "classifier")
    loaded = registry.load(ref, device)
    side = card.input_px * card.um_per_px * PATCH_PX / PATCH_UM
    middle = PATCH_PX / 2
    windows = [cut_square(p, middle, middle, side, card.input_px) for p in crops.pixels]
    chances = [predict(np.stack(windows[i : i + 64]), loaded) for i in range(0, len(windows), 64)]
    named = np.concatenate(chances).argmax(1)
    return confusion(crops.labels, [card.classes[i] for i in named], card.classes)


def read_crops(values: dict[str, Any], data: Path) -> Crops:
    """Single cells of one `data` table: `format` crops (a Parquet table) or voc (white cells with a sure kind)."""
    if values["format"] == "crops":
        per_px, left_out = float(values["um_per_px"]), tuple(values.get("leave_out", ()))
        parts = [read_crop_table(data / values["table"], split, per_px, left_out) for split in values["splits"]]
        return Crops(np.concatenate([c.pixels for c in parts]), tuple(label for c in parts for label in c.labels))
    kinds = pd.read_csv(data / values["kinds"]).dropna().set_index("image")["subtypes"]
    sure = {str(stem): str(kind) for stem, kind in kinds.items() if ";" not in kind}
    spec = section(BoxData, {k: v for k, v in values.items() if k != "kinds"}, "data")
    pictures = read_boxes(spec, data)
    return cut_crops(pictures, sure, spec.um_per_px or red_cell_um_per_px(pictures))


def _card(
    plan: dict[str, Any], config: Path, task: Any, um_per_px: float, input_px: int, model: dict[str, Any]
) -> ModelCard:
    return ModelCard(
        name=plan.get("name", f"wbc-{task}"),
        version=__version__,
        task=task,
        builder=plan["builder"],
        arguments=model,
        classes=tuple(plan["classes"]),
        um_per_px=um_per_px,
        input_px=input_px,
        mean=MEAN,
        std=STD,
        sha256="",
        threshold=float(plan.get("threshold", 0.0)),
        dataset=f"{config.name} {hashlib.sha256(config.read_bytes()).hexdigest()[:12]}",
        code_revision=code_revision(),
        credits=tuple(plan.get("credits", ())),
    )


def _with_metrics(card: ModelCard, metrics: dict[str, float]) -> ModelCard:
    return replace(card, metrics=metrics)


def _stack(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    return torch.stack([pixels for pixels, _ in samples]), torch.tensor([row for _, row in samples])
