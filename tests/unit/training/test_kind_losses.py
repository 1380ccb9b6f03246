"""Equations 1, 2, 8 and 9 of ASAE-Net 2020 by hand, coarse labels, and the sampler, the fall and the hues beside."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wbc.cells.hue import adjust_hue, spread
from wbc.datasets.augment import Jitter
from wbc.datasets.crops import PATCH_PX, Crops
from wbc.training.classifier_data import CropSamples, CropSettings
from wbc.training.kind_losses import LossSettings, kind_loss
from wbc.training.loop import LoopSettings, rate_factor

SCORES = torch.tensor([[0.5, 2.0, -1.0, 1.5, 0.0, -2.0, 1.0, -0.5]])
LABEL = torch.tensor([[True, *[False] * 7]])


def plain(name: Any, **k: int) -> LossSettings:
    return LossSettings(name, 0.0, **k)


def by_hand(chosen: list[int]) -> float:
    s = SCORES[0].tolist()
    return -math.log(math.exp(s[0]) / (math.exp(s[0]) + sum(math.exp(s[i]) for i in chosen)))


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        (plain("ce"), [1, 2, 3, 4, 5, 6, 7]),
        (plain("gce"), [1, 3, 6]),
        (plain("gmmce"), [1, 3, 6, 5, 2, 7]),
        (plain("gmmce", highest=1, lowest=2), [1, 5, 2]),
        (plain("gmmce", highest=5, lowest=5), [1, 2, 3, 4, 5, 6, 7]),  # classes in both sets count once
        (plain("gce", highest=20), [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_the_losses_are_the_equations(settings: LossSettings, chosen: list[int]) -> None:
    assert kind_loss(SCORES, LABEL, settings).item() == pytest.approx(by_hand(chosen), rel=1e-6)


def test_the_gradient_is_equation_9_with_each_class_its_own_score() -> None:
    # The paper prints exp(s_l) over the wrong classes, too; the derivative of equation 8 has exp(s_c) there.
    scores = SCORES.double().clone().requires_grad_()
    kind_loss(scores, LABEL, plain("gmmce")).backward()  # type: ignore[no-untyped-call]
    seen = [0, 1, 3, 6, 5, 2, 7]
    expected = torch.zeros(8, dtype=torch.float64)
    expected[seen] = SCORES[0].double()[seen].softmax(0)
    expected[0] -= 1
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[0], expected)


def test_the_gradients_stand_in_the_order_of_equation_10() -> None:
    def pull(name: str) -> float:
        scores = SCORES.clone().requires_grad_()
        kind_loss(scores, LABEL, plain(name)).backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        return float(scores.grad[0, 1])

    assert pull("gce") > pull("gmmce") > pull("ce")


def test_a_coarse_label_is_right_with_any_of_its_classes() -> None:
    covered = torch.tensor([[True, True, *[False] * 6]])
    e = SCORES[0].exp()
    loss = kind_loss(SCORES, covered, plain("gce", highest=1)).item()
    assert loss == pytest.approx(-math.log(float((e[0] + e[1]) / (e[0] + e[1] + e[3]))), rel=1e-5)
    assert kind_loss(SCORES, torch.ones(1, 8, dtype=torch.bool), plain("gmmce")).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["ce", "gce", "gmmce"])
@pytest.mark.parametrize("place", [0, 4])
def test_a_score_that_is_no_number_is_never_passed_over(name: str, place: int) -> None:
    scores: Tensor = SCORES.clone()
    scores[0, place] = math.nan
    assert kind_loss(scores, LABEL, plain(name)).isnan()


def test_a_loss_looks_at_one_class_at_least() -> None:
    with pytest.raises(ValueError, match="highest is 0"):
        LossSettings("gce", highest=0)


def test_a_balanced_batch_shows_every_label_as_often() -> None:
    def crops(labels: str) -> Crops:
        return Crops(np.zeros((len(labels), PATCH_PX, PATCH_PX, 3), np.uint8), tuple(labels))

    rows = {"a": 0, "b": 1, "c": 2}
    parts = [(crops("aaaaaab"), rows, 1.0), (crops("bc"), rows, 3.0)]
    samples = CropSamples(parts, CropSettings(input_px=16), Jitter(plain=1.0), 0, "balanced")
    assert [samples[i][1] for i in range(18)] == [0, 1, 2] * 6
    assert samples.pictures(1)[0] in {"cell 7 of data set 1", "cell 1 of data set 2"}


def test_the_rate_falls_to_a_part_of_itself_every_so_many_steps() -> None:
    settings = LoopSettings(steps=100, batch=1, warm_up=0, fall_every=30)
    assert [rate_factor(s, settings) for s in (0, 29, 30, 59, 60, 99)] == pytest.approx(
        [1, 1, 0.85, 0.85, 0.85**2, 0.85**3]
    )


def test_hues_are_spread_by_equation_11() -> None:
    assert spread(np.array([10.0, 20.0, 30.0]), 125, 155).tolist() == pytest.approx([125, 140, 155])
    assert spread(np.array([7.0, 7.0]), 125, 155).tolist() == [125, 125]


def test_crops_get_violet_and_keep_their_light_and_a_range_that_is_none_is_named() -> None:
    crops = np.zeros((2, 4, 4, 3), np.uint8)
    crops[0, :2], crops[0, 2:] = (200, 40, 40), (40, 200, 60)
    crops[1] = 128
    seen = adjust_hue(crops, (125, 155)).astype(int)
    assert np.abs(seen.max(3) - crops.max(3)).max() <= 1
    assert (seen[0, ..., 1] == seen[0].min(2)).all()  # violet to magenta: green is the least of the three
    assert (seen[1] == 128).all()
    assert adjust_hue(crops[:0], (125, 155)).shape == (0, 4, 4, 3)
    with pytest.raises(ValueError, match=r"hue is \[155, 125\]"):
        adjust_hue(crops, (155, 125))
