"""Pixels + boxes + classifier -> a kind and a probability per cell."""

import numpy as np
import torch
from numpy.typing import NDArray

from wbc.geometry import cut_square
from wbc.registry import LoadedModel

BATCH = 64


def classify(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float32], um_per_px: float, model: LoadedModel
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The class index int64 (N,) and probability float32 (N,) of the cell in each box (N,4) of a field uint8 (H,W,3).

    A cell is seen in the middle of a square of fixed size in µm, whatever its box: size is part of what it is. The
    probability is the mean over the crop and its mirror image.
    """
    card = model.card
    side_px = card.input_px * card.um_per_px / um_per_px
    centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)
    kinds, probabilities = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.float32)
    for start in range(0, len(boxes), BATCH):
        crops = np.stack([cut_square(pixels, x, y, side_px, card.input_px) for x, y in centres[start : start + BATCH]])
        chances = predict(crops, model)
        kinds[start : start + BATCH] = chances.argmax(1)
        probabilities[start : start + BATCH] = chances.max(1)
    return kinds, probabilities


@torch.inference_mode()
def predict(crops: NDArray[np.uint8], model: LoadedModel) -> NDArray[np.float32]:
    """Class probabilities float32 (N,C) of crops uint8 (N,S,S,3), each with its mirror image."""
    x = torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2))).to(model.device).float().div_(255)
    mean, std = (torch.tensor(v, device=model.device).view(1, 3, 1, 1) for v in (model.card.mean, model.card.std))
    x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
    chances = (model.module(x).softmax(1) + model.module(x.flip(3)).softmax(1)) / 2
    return np.asarray(chances.float().cpu().numpy())
