"""Pixels + boxes + classifier -> the probabilities of each cell's classes, and how strange the cell looks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wbc.cells.appearance import KnownLooks, appearance
from wbc.cells.crop import cut_square, even_light
from wbc.cells.hue import adjust_hue
from wbc.models.cards import ModelCard
from wbc.models.last_layer import features_of, last_layer
from wbc.models.registry import LoadedModel

# Cells that go through the model together. On a GPU always so many, some of them blank if need be: for each number of
# them that it has not met yet, cuDNN would first make a plan for every convolution, half a second in all.
BATCH = 64


class Classified(NamedTuple):
    """What a classifier says of N cells: class probabilities float32 (N,C), and how far the look of each is from that
    of the cells it has learnt from, float32 (N,), NaN where the model does not know (`wbc.cells.appearance`)."""

    probabilities: NDArray[np.float32]
    distances: NDArray[np.float32]


def classify(pixels: NDArray[np.uint8], boxes: NDArray[np.float32], um_per_px: float, model: LoadedModel) -> Classified:
    """What the classifier says of the cell in each box (N,4) of a field uint8 (H,W,3).

    A cell is seen in the middle of a square of fixed size in µm, whatever its box: size is part of what it is. The
    probabilities are means over the crop and its mirror image. Raises FloatingPointError where some are not numbers.
    """
    return checked(classify_together([pixels], [boxes], um_per_px, model)[0], model)


def checked(classified: Classified, model: LoadedModel) -> Classified:
    """The same. Raises FloatingPointError where some of the model's probabilities are not numbers."""
    chances = classified.probabilities
    if broken := np.count_nonzero(~np.isfinite(chances).all(1)):
        raise FloatingPointError(
            f"{broken} of {len(chances)} cells have probabilities that are not numbers ({model.card.name})"
        )
    return classified


def classify_together(
    fields: Sequence[NDArray[np.uint8]], boxes: Sequence[NDArray[np.float32]], um_per_px: float, model: LoadedModel
) -> list[Classified]:
    """`classify` of several fields of one scale, unchecked: their cells go through the model together."""
    card, known = model.card, KnownLooks.from_arrays(model.beside)
    owner = np.repeat(np.arange(len(fields)), [len(of_field) for of_field in boxes])
    every = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
    chances, distances = [np.zeros((0, len(card.classes)), np.float32)], [np.zeros(0, np.float32)]
    for start in range(0, len(every), BATCH):
        some = slice(start, start + BATCH)
        parts = [(i, every[some][owner[some] == i]) for i in np.unique(owner[some])]
        crops = np.concatenate([cut_crops(fields[i], of_field, um_per_px, card) for i, of_field in parts])
        chances.append(predict(crops, model))
        unknown = np.full(len(crops), np.nan, np.float32)
        distances.append(unknown if known is None else known.distance(appearance(crops)))
    ends = np.cumsum([len(of_field) for of_field in boxes])[:-1]
    shares = (np.split(np.concatenate(parts), ends) for parts in (chances, distances))
    return [Classified(*of_field) for of_field in zip(*shares, strict=True)]


def cut_crops(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float32], um_per_px: float, card: ModelCard
) -> NDArray[np.uint8]:
    """What a classifier gets to see of the cell in each box (N,4) of a field uint8 (H,W,3): uint8 (N,S,S,3)."""
    side_px = card.input_px * card.um_per_px / um_per_px
    centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)
    crops = [cut_square(pixels, x, y, side_px, card.input_px) for x, y in centres]
    return np.stack([np.zeros((card.input_px, card.input_px, 3), np.uint8), *crops])[1:]


@torch.inference_mode()
def predict(crops: NDArray[np.uint8], model: LoadedModel) -> NDArray[np.float32]:
    """Class probabilities float32 (N,C) of crops uint8 (N,S,S,3), each with its mirror image."""
    views = _views(crops, model)
    if model.device.type == "cpu":
        seen, mirrored = map(model.module, views)
    else:  # a GPU waits for each call
        filled = torch.cat([nn.functional.pad(view, (0, 0) * 3 + (0, -len(view) % BATCH)) for view in views])
        seen, mirrored = (answers[: len(crops)] for answers in model.module(filled).chunk(2))
    chances = (seen.softmax(1) + mirrored.softmax(1)) / 2
    return np.asarray(chances.float().cpu().numpy())


@torch.inference_mode()
def features(crops: NDArray[np.uint8], model: LoadedModel) -> NDArray[np.float32]:
    """What the last layer of a classifier gets in `predict`: float32 (N,2,F) of crops uint8 (N,S,S,3), mirrored second.

    Raises ModelError where its architecture has no last layer of its own.
    """
    parts = [np.zeros((0, 2, last_layer(model).in_features), np.float32)]
    for start in range(0, len(crops), BATCH):
        views = [features_of(model, view) for view in _views(crops[start : start + BATCH], model)]
        parts.append(torch.stack(views, 1).float().cpu().numpy())
    return np.concatenate(parts)


def _views(crops: NDArray[np.uint8], model: LoadedModel) -> tuple[Tensor, Tensor]:
    """Crops and their mirror images (N,3,S,S), prepared as the card says: whatever runs a classifier gets them here."""
    crops = even_light(crops) if model.card.even_light else crops
    crops = adjust_hue(crops, model.card.hue) if model.card.hue else crops
    x = torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2))).to(model.device).float().div_(255)
    mean, std = (torch.tensor(v, device=model.device).view(1, 3, 1, 1) for v in (model.card.mean, model.card.std))
    x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
    return x, x.flip(3)
