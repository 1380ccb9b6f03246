"""At the score that a count asks for, a calibrated detector reports as many cells as there are."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from wbc.training.calibration import CalibrationSettings, calibrate, count_shifts

CLASSES = ["rbc", "platelet", "wbc"]
N_TRUE = (120, 30, 0)


class Pictures(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Pictures with a known number of cells of each class; their pixels are the number of the picture."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        labels = torch.tensor([label for label, n in enumerate(N_TRUE, 1) for _ in range(n)])
        return torch.full((3, 1, 1), float(index)), {"boxes": torch.zeros(len(labels), 4), "labels": labels}


class ShyDetector(nn.Module):
    """It sees every cell and as much dirt, cells mostly surer than dirt, but trusts itself too little."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_score = nn.Linear(4, 4)
        nn.init.zeros_(self.cls_score.bias)
        self.eval()

    @property
    def body(self) -> nn.Module:
        return self

    @property
    def class_bias(self) -> Tensor:
        return self.cls_score.bias[1:]

    def forward(self, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
        (pixels,) = pictures
        rng = np.random.default_rng(int(pixels[0, 0, 0]))
        scores, labels = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
        for label, n in enumerate(N_TRUE, 1):
            logits = torch.tensor([0.0, -4.0, -4.0, -4.0]).repeat(2 * n, 1)
            logits[:, label] = torch.from_numpy(np.r_[rng.normal(0.5, 1, n), rng.normal(-3, 1, n)]).float()
            scores.append((logits + self.cls_score.bias).softmax(1)[:, label])
            labels.append(torch.full((2 * n,), label))
        return [{"scores": torch.cat(scores), "labels": torch.cat(labels)}]


def n_found(model: Any, score: float, first: int, n: int) -> list[int]:
    found = [model([Pictures()[i][0]])[0] for i in range(first, first + n)]
    return [sum(int(((f["labels"] == label) & (f["scores"] >= score)).sum()) for f in found) for label in (1, 2, 3)]


def test_as_many_cells_as_there_are_at_the_score() -> None:
    model: Any = ShyDetector()
    assert n_found(model, 0.7, 100, 10)[0] < 0.5 * 10 * N_TRUE[0]
    calibrate(model, Pictures(), 0, CLASSES, CalibrationSettings(pictures=10))
    rbc, platelet, _ = n_found(model, 0.7, 100, 10)
    assert rbc == pytest.approx(10 * N_TRUE[0], rel=0.1)
    assert platelet == pytest.approx(10 * N_TRUE[1], rel=0.1)


def test_of_some_classes_as_many_as_a_teacher_finds() -> None:
    model: Any = ShyDetector()
    teacher: Any = ShyDetector()
    with torch.no_grad():
        teacher.class_bias.add_(1.0)
    wanted = n_found(teacher, 0.7, 100, 10)
    assert wanted[0] < 0.9 * 10 * N_TRUE[0]
    calibrate(model, Pictures(), 0, CLASSES, CalibrationSettings(pictures=10, as_teacher=("rbc",)), teacher)
    rbc, platelet, _ = n_found(model, 0.7, 100, 10)
    assert rbc == pytest.approx(wanted[0], rel=0.1)
    assert platelet == pytest.approx(10 * N_TRUE[1], rel=0.1)


def test_class_that_is_not_shown_stays() -> None:
    model: Any = ShyDetector()
    *others, wbc = count_shifts(model, Pictures(), range(4), CLASSES, CalibrationSettings())
    assert wbc == 0
    assert min(others) > 0


def test_no_class_moves_further_than_it_may() -> None:
    model: Any = ShyDetector()
    shifts = calibrate(model, Pictures(), 0, CLASSES, CalibrationSettings(pictures=2, most=0.25))
    assert max(abs(v) for v in shifts.values()) <= 0.25
    assert model.cls_score.bias.abs().max() <= 0.2501
    assert model.cls_score.bias[0] == 0
