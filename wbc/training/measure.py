"""What a trained model is worth: figures on the data sets that a config names for it, by the way of a count."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.cells.classify import predict
from wbc.cells.crop import cut_square
from wbc.cells.detect import detect
from wbc.cells.tiles import TileSettings
from wbc.datasets.crops import PATCH_PX, Crops
from wbc.models import registry
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.storage.images import read_field
from wbc.training.classifier_data import CropData, read_crops
from wbc.training.detector_data import BoxData, StoreData, of_one_scale, read_boxes
from wbc.training.metrics import average_precision, confusion, kind_accuracy

LOWEST_SCORE = 0.05


def measure_detector(specs: Sequence[BoxData | StoreData], data: Path, model: Path, device: str) -> dict[str, float]:
    """AP of a saved detector on data sets below `data`, each figure named by its set."""
    ref, _ = registry.resolve(str(model), "detector")
    return detector_figures(specs, data, registry.load(ref, device))


def detector_figures(specs: Sequence[BoxData | StoreData], data: Path, loaded: LoadedModel) -> dict[str, float]:
    """`measure_detector` of a detector in memory."""
    metrics: dict[str, float] = {}
    for spec in specs:
        truth, detections = [], []
        for scale, pictures in of_one_scale(read_boxes(spec, data), spec.um_per_px).items():
            for picture in pictures:
                pixels = read_field(UPath(picture.path))
                truth.append((picture, pixels.shape[1], pixels.shape[0]))
                detections += detect([pixels], loaded, scale, LOWEST_SCORE, TileSettings())
        metrics |= _named(spec.set, average_precision(truth, detections, loaded.card.classes))
    return metrics


def measure_classifier(specs: Sequence[CropData], data: Path, model: Path, device: str) -> dict[str, float]:
    """Accuracy and macro recall of a saved classifier on data sets below `data`, each figure named by its set."""
    ref, _ = registry.resolve(str(model), "classifier")
    return classifier_figures(specs, data, registry.load(ref, device))


def classifier_figures(specs: Sequence[CropData], data: Path, loaded: LoadedModel) -> dict[str, float]:
    """`measure_classifier` of a classifier in memory."""
    metrics: dict[str, float] = {}
    for spec in specs:
        metrics |= _named(spec.set, kind_accuracy(_confusion(read_crops(spec, data), loaded)))
    return metrics


def _named(name: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{name} {figure}": round(value, 4) for figure, value in figures.items()}


def classifier_confusion(crops: Crops, reference: str, device: str) -> NDArray[np.int64]:
    """Confusion (true, named) int64 (C,C) of a classifier on single cells, seen as a count sees them."""
    ref, _ = registry.resolve(reference, "classifier")
    return _confusion(crops, registry.load(ref, device))


def _confusion(crops: Crops, loaded: LoadedModel) -> NDArray[np.int64]:
    answers, classes = crop_probabilities(crops, loaded).argmax(1), loaded.card.classes
    return confusion(crops.labels, [classes[i] for i in answers], classes)


def crop_probabilities(crops: Crops, model: LoadedModel) -> NDArray[np.float32]:
    """Class probabilities float32 (N,C) of single cells, each in the window that a count cuts."""
    windows = count_windows(crops, model.card)
    parts = [predict(windows[i : i + 64], model) for i in range(0, len(windows), 64)]
    return np.concatenate([np.zeros((0, len(model.card.classes)), np.float32), *parts])


def count_windows(crops: Crops, card: ModelCard) -> NDArray[np.uint8]:
    """Single cells in the windows that a count cuts for a classifier: uint8 (N,S,S,3)."""
    side, middle = card.input_px * card.um_per_px * PATCH_PX / crops.patch_um, PATCH_PX / 2
    windows = [cut_square(p, middle, middle, side, card.input_px) for p in crops.pixels]
    return np.stack([*windows, np.zeros((card.input_px, card.input_px, 3), np.uint8)])[:-1]
