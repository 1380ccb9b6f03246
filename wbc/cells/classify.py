"""Pixels + boxes + classifier -> a kind and a probability per cell."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wbc.cells.crop import cut_square
from wbc.models.registry import LoadedModel
from wbc.taxonomy import GENERIC, Taxonomy, label_matrix

BATCH = 64


def classify(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float32], um_per_px: float, model: LoadedModel
) -> NDArray[np.float32]:
    """The class probabilities float32 (N,C) of the cell in each box (N,4) of a field uint8 (H,W,3).

    A cell is seen in the middle of a square of fixed size in µm, whatever its box: size is part of what it is. The
    probabilities are means over the crop and its mirror image.
    """
    card = model.card
    side_px = card.input_px * card.um_per_px / um_per_px
    centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)
    chances = [np.zeros((0, len(card.classes)), np.float32)]
    for start in range(0, len(boxes), BATCH):
        crops = np.stack([cut_square(pixels, x, y, side_px, card.input_px) for x, y in centres[start : start + BATCH]])
        chances.append(predict(crops, model))
    return np.concatenate(chances)


def name_kinds(
    chances: NDArray[np.float32], classes: Sequence[str], taxonomy: Taxonomy, threshold: float
) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
    """The name of each cell (N,) from its class probabilities (N,C), and that name's probability float32 (N,).

    The likeliest class; where none has `threshold`, the likeliest parent that has it (band or segmented, but surely a
    neutrophil): a parent's probability is the sum of its children's. A parent of all classes says nothing. `wbc` where
    no name is sure enough, with the likeliest class's probability.
    """
    names, scores = np.array(classes, object)[chances.argmax(1)], chances.max(1)
    unsure = scores < threshold
    names[unsure] = GENERIC
    parents = sorted({p for p in (taxonomy.cell_type(c).parent for c in classes) if p is not None})
    covers = label_matrix(taxonomy, classes, parents)
    covers[covers.all(1)] = 0
    if parents:
        sums = chances @ covers.T
        coarse = unsure & (sums.max(1) >= threshold)
        names[coarse] = np.array(parents, object)[sums.argmax(1)[coarse]]
        scores = np.where(coarse, sums.max(1), scores)
    return names, scores


@torch.inference_mode()
def predict(crops: NDArray[np.uint8], model: LoadedModel) -> NDArray[np.float32]:
    """Class probabilities float32 (N,C) of crops uint8 (N,S,S,3), each with its mirror image."""
    x = torch.from_numpy(np.ascontiguousarray(crops.transpose(0, 3, 1, 2))).to(model.device).float().div_(255)
    mean, std = (torch.tensor(v, device=model.device).view(1, 3, 1, 1) for v in (model.card.mean, model.card.std))
    x = ((x - mean) / std).contiguous(memory_format=torch.channels_last)
    chances = (model.module(x).softmax(1) + model.module(x.flip(3)).softmax(1)) / 2
    return np.asarray(chances.float().cpu().numpy())
