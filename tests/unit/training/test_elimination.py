"""Channels that others can stand in for."""

import torch

from wbc.training.elimination import Regression


def test_a_channel_that_is_a_sum_of_others_goes_first() -> None:
    torch.manual_seed(0)
    channels = torch.rand(5, 400)
    channels[2] = channels[0] + 2 * channels[4] - 0.5
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.5, 1.0], [0.0, 1.0, 1.0, -1.0, 2.0]])
    wanted = weight @ channels + torch.tensor([[0.25], [-1.0]])
    regression = Regression()
    for part in torch.arange(400).split(150):
        regression.add(channels[:, part], wanted[:, part])
    kept = regression.keep(4)
    assert len(kept.channels) == 4
    assert {1, 3} < set(kept.channels.tolist())  # one of the three that are tied went
    said = kept.weight @ channels[kept.channels].double() + kept.bias[:, None]
    torch.testing.assert_close(said, wanted.double(), atol=1e-4, rtol=1e-4)


def test_those_remain_that_the_answers_would_miss_most() -> None:
    torch.manual_seed(1)
    channels = torch.rand(4, 1000)
    wanted = torch.tensor([[5.0, 0.1, 3.0, 0.2]]) @ channels
    regression = Regression()
    regression.add(channels, wanted)
    assert regression.keep(2).channels.tolist() == [0, 2]
    assert regression.keep(4).channels.tolist() == [0, 1, 2, 3]


def test_what_weighs_more_is_missed_less() -> None:
    torch.manual_seed(2)
    channels = torch.rand(2, 1000)
    regression = Regression()
    regression.add(channels, channels)  # each answer is one of the channels
    assert regression.keep(1, torch.tensor([1.0, 9.0])).channels.tolist() == [1]
    assert regression.keep(1, torch.tensor([9.0, 1.0])).channels.tolist() == [0]
