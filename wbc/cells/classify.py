"""Pixels + boxes + classifier -> a cell type and a probability per cell."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wbc.cells.crop import cut_square
from wbc.models.registry import LoadedModel
from wbc.taxonomy import UNIDENTIFIED, Taxonomy, label_matrix

BATCH = 64


def classify(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float32], um_per_px: float, model: LoadedModel
) -> NDArray[np.float32]:
    """The class probabilities float32 (N,C) of the cell in each box (N,4) of a field uint8 (H,W,3).

    A cell is seen in the middle of a square of fixed size in µm, whatever its box: size is part of what it is. The
    probabilities are means over the crop and its mirror image. Raises FloatingPointError where some are not numbers.
    """
    card = model.card
    side_px = card.input_px * card.um_per_px / um_per_px
    centres = np.stack([(boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2], 1)
    chances = [np.zeros((0, len(card.classes)), np.float32)]
    for start in range(0, len(boxes), BATCH):
        crops = np.stack([cut_square(pixels, x, y, side_px, card.input_px) for x, y in centres[start : start + BATCH]])
        chances.append(predict(crops, model))
    every = np.concatenate(chances)
    if broken := np.count_nonzero(~np.isfinite(every).all(1)):
        raise FloatingPointError(
            f"{broken} of {len(boxes)} cells have probabilities that are not numbers ({card.name})"
        )
    return every


def name_cells(
    chances: NDArray[np.float32], classes: Sequence[str], taxonomy: Taxonomy, threshold: float
) -> tuple[NDArray[np.object_], NDArray[np.float32]]:
    """The taxonomy's own type of each cell (N,) from its class probabilities (N,C), and its probability float32 (N,).

    Classes that the taxonomy takes for one type are summed first. Then the likeliest type; where none has `threshold`,
    the likeliest parent that has it (band or segmented, but surely a neutrophil): a parent's probability is the sum of
    its children's. A parent of all types says nothing. `unidentified` where nothing is sure enough, with the likeliest
    type's probability.
    """
    types = list(dict.fromkeys(taxonomy.resolve(c) for c in classes))
    chances = chances @ np.array([[taxonomy.resolve(c) == t for t in types] for c in classes], np.float32)
    names, scores = np.array(types, object)[chances.argmax(1)], chances.max(1)
    unsure = scores < threshold
    names[unsure] = UNIDENTIFIED
    parents = sorted({p for p in (taxonomy.cell_type(t).parent for t in types) if p is not None})
    covers = label_matrix(taxonomy, types, parents)
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
