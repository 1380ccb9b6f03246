"""A detector that learns from another one's answers beside its labels."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wbc.models import builders
from wbc.models.bfloat16 import InBfloat16
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.training.distillation import Answers, Distillation, apart

HALF = (0.5, 0.5, 0.5)
THIN = {"backbone": "test_efficientnet", "pyramid_channels": 8, "head_width": 16}
CARD = ModelCard("d", "1", "detector", "faster_rcnn", THIN, ("rbc", "platelet", "wbc"), 0.2, 0, HALF, HALF, "")
BY_LABELS = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
BY_TEACHER = {"teacher_objectness", "teacher_corners", "teacher_classes", "teacher_boxes"}


def model(card: ModelCard, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module: Any = builders.build(card)
    nn.init.normal_(module.rpn.head.cls_logits.weight, std=0.5)
    for part in module.modules():
        if isinstance(part, InBfloat16):
            part.half_precision = False
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0
    return module


def teacher(seed: int = 1, **changes: Any) -> LoadedModel:
    card = replace(CARD, **changes)
    return LoadedModel(model(card, seed), card, torch.device("cpu"))


def pictures() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    dice = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[10.0, 12.0, 40.0, 44.0], [50.0, 20.0, 110.0, 90.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 3])}
    return [torch.rand(3, 96, 128, generator=dice) for _ in range(2)], [target, target]


def test_who_answers_as_the_teacher_does_has_nothing_to_learn_from_it() -> None:
    pupil = model(CARD, 1).eval()
    pupil.training = pupil.rpn.training = pupil.roi_heads.training = True  # type: ignore[union-attr]
    losses = Distillation(teacher(1), 1.0, CARD, pupil)(pupil, *pictures())
    assert set(losses) == BY_LABELS | BY_TEACHER
    assert all(abs(losses[name].item()) < 1e-3 for name in BY_TEACHER)
    assert all(losses[name].item() > 0.01 for name in BY_LABELS - {"loss_rpn_box_reg"})


def test_a_step_moves_every_part_towards_the_teacher_and_leaves_the_teacher_alone() -> None:
    wide = teacher(2, arguments=THIN | {"pyramid_channels": 16})
    before = {name: tensor.clone() for name, tensor in wide.module.state_dict().items()}
    pupil = model(CARD, 1).train()
    distillation = Distillation(wide, 1.0, CARD, pupil)
    optimizer = torch.optim.Adam(pupil.parameters(), 3e-3)
    sums = []
    for _ in range(12):
        torch.manual_seed(0)
        losses = distillation(pupil, *pictures())
        loss = torch.stack([losses[name] for name in BY_TEACHER]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pupil.parameters() if p.ndim > 1)
        optimizer.step()
        sums.append(loss.item())
    assert sums[-1] < 0.8 * sums[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in wide.module.state_dict().items())
    assert not any(p.requires_grad for p in wide.module.parameters())


def test_the_weight_is_the_teachers_alone() -> None:
    losses = []
    for weight in (1.0, 3.0):
        pupil = model(CARD, 1).train()
        torch.manual_seed(0)
        losses.append(Distillation(teacher(2), weight, CARD, pupil)(pupil, *pictures()))
    assert all(losses[1][name].item() == pytest.approx(3 * losses[0][name].item()) for name in BY_TEACHER)
    assert all(losses[1][name].item() == losses[0][name].item() for name in BY_LABELS)


def test_how_far_answers_are_apart_by_hand() -> None:
    """Two anchors, which the teacher takes for a cell with 0.8 and 0.2, and a region: ground 0.5, a cell 0.25 each."""
    odds = math.log(4)
    wanted = Answers(
        torch.tensor([[odds, -odds]]),
        torch.zeros(1, 2, 4),
        torch.tensor([[math.log(2), 0.0, 0.0]]),
        torch.zeros(1, 3, 4),
    )
    own = Answers(
        torch.zeros(1, 2),
        torch.tensor([[[1.0, 0, 0, 0], [0, 0, -2.0, 0]]]),
        torch.zeros(1, 3),
        torch.tensor([[[9.0, 9, 9, 9], [0, 1.0, 0, 0], [0, 0, 0, 3.0]]]),
    )
    losses = apart(own, wanted)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert losses["teacher_objectness"].item() == pytest.approx(2 * (math.log(2) - entropy))
    assert losses["teacher_corners"].item() == pytest.approx(0.8 * 1 + 0.2 * 2)
    assert losses["teacher_classes"].item() == pytest.approx(0.5 * math.log(1.5) + 0.5 * math.log(0.75))
    assert losses["teacher_boxes"].item() == pytest.approx(0.25 * 1 + 0.25 * 3)  # half a cell counts as one
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in apart(wanted, wanted).values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": ("rbc", "wbc", "platelet")}, r"the teacher 'd' has other classes: \['rbc', 'wbc', 'platelet'\]"),
        ({"um_per_px": 0.1}, r"the teacher 'd' has other µm per px: 0\.1, not 0\.2"),
        ({"mean": (0.4, 0.5, 0.5)}, "the teacher 'd' has other mean and spread of pixels"),
        ({"arguments": THIN | {"anchor_px": [[12], [28], [62], [130]]}}, "the teacher 'd' has other anchors"),
        (
            {"builder": "attentive_rcnn", "arguments": {"detector": THIN, "attention": {}}},
            "a faster_rcnn learns from a faster_rcnn, not faster_rcnn from attentive_rcnn",
        ),
    ],
)
def test_a_teacher_of_other_answers_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Distillation(teacher(2, **changes), 1.0, CARD, model(CARD, 1))
