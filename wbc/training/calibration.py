"""Where a detector's scores stand: at the score that a count asks for it reports about as many cells as there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from wbc.models.trainable import TrainableDetector


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How many `pictures` tell, and the `score` that as many detections are to have as the `share` of true cells.

    The last cells, of which a picture's edge leaves a sliver, would have to be bought with false ones. No class moves
    by more than `most` (a logit): a detector that has hardly learnt cannot be helped. Of the classes
    `as_teacher` as many are wanted as a teacher finds with that score, so that who takes its place counts as it did.
    """

    pictures: int = 80
    score: float = 0.7
    share: float = 0.98
    most: float = 3.0
    as_teacher: tuple[str, ...] = ()


@torch.inference_mode()
def count_shifts(
    model: TrainableDetector,
    samples: Dataset[Any],
    indices: Sequence[int],
    classes: Sequence[str],
    settings: CalibrationSettings,
    teacher: nn.Module | None = None,
) -> list[float]:
    """Per class the logit to add, so that on these pictures the wanted number of detections has the wanted score.

    Model and `teacher` are in eval mode. `samples` are pictures and targets as torchvision's detectors take them. A
    class that they, or the teacher, do not show stays.
    """
    device = model.class_bias.device
    scores: list[list[Tensor]] = [[torch.zeros(0)] for _ in classes]
    wanted = np.zeros(len(classes))
    for index in indices:
        pixels, target = samples[index]
        (detections,) = model([pixels.to(device)])
        answers = None if teacher is None else teacher([pixels.to(device)])[0]
        for i, name in enumerate(classes):
            scores[i].append(detections["scores"][detections["labels"] == i + 1].float().cpu())
            if answers is not None and name in settings.as_teacher:
                wanted[i] += int((answers["labels"][answers["scores"] >= settings.score] == i + 1).sum())
            else:
                wanted[i] += settings.share * int((target["labels"] == i + 1).sum())
    shifts = []
    for parts, n in zip(scores, wanted, strict=True):
        best = torch.cat(parts).sort(descending=True).values
        score, last = torch.tensor(settings.score), max(0, min(round(n), len(best)) - 1)
        threshold = best[last] if n and len(best) else score
        shifts.append(float(torch.logit(score) - torch.logit(threshold, eps=1e-4)))
    return shifts


def calibrate(
    model: TrainableDetector,
    samples: Dataset[Any],
    first: int,
    classes: Sequence[str],
    settings: CalibrationSettings,
    teacher: nn.Module | None = None,
) -> dict[str, float]:
    """Shift a detector's class logits in place by what `count_shifts` tells; the shift of each class.

    `samples` from `first` on are pictures that training did not draw, under the stains, lamps and scales that it draws:
    a score means the same on a slide that looks like none of the data. Ranks within a class stay as they were.
    """
    total = np.zeros(len(classes))
    # A shift of one class moves the others' scores a little: the softmax is theirs too.
    for round_ in range(2):
        start = first + round_ * settings.pictures
        indices = range(start, start + settings.pictures)
        shifts = count_shifts(model, samples, indices, classes, settings, teacher)
        step = np.clip(total + shifts, -settings.most, settings.most) - total
        with torch.no_grad():
            model.class_bias.add_(torch.from_numpy(step).to(model.class_bias))
        total += step
    return dict(zip(classes, total.round(3).tolist(), strict=True))
