"""The agent's boxes, returns and losses on numbers made by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from wbc.models.box_agent import (
    ACTIONS,
    STAY,
    AgentSettings,
    BoxAgent,
    Start,
    Step,
    actor_critic_losses,
    drawn,
    moved,
    paired_iou,
    returns,
)

BOX = torch.tensor([[10.0, 20, 30, 60]])  # 20 wide, 40 high


@pytest.mark.parametrize(
    ("action", "box"),
    [
        (0, [12, 20, 32, 60]),
        (1, [8, 20, 28, 60]),
        (2, [10, 24, 30, 64]),
        (3, [10, 16, 30, 56]),
        (4, [9, 20, 31, 60]),
        (5, [11, 20, 29, 60]),
        (6, [10, 18, 30, 62]),
        (7, [10, 22, 30, 58]),
        (STAY, [10, 20, 30, 60]),
    ],
)
def test_an_action_moves_or_stretches_by_a_tenth(action: int, box: list[float]) -> None:
    torch.testing.assert_close(moved(BOX, torch.tensor([action]), 0.1), torch.tensor([box], dtype=torch.float32))


def test_returns_are_discounted_end_with_the_episode_and_go_on_by_the_value() -> None:
    """First box: ends at the second of three steps. Second box: does not end, V of what comes after is 8."""
    rewards = torch.tensor([[1.0, 1], [2, 2], [99, 3]])
    ended = torch.tensor([[False, False], [True, False], [False, False]])
    gained = returns(rewards, ended, torch.tensor([8.0, 8.0]), 0.5)
    assert gained[:2, 0].tolist() == [2, 2]  # 1 + 2/2, and 2 with nothing behind it
    assert gained[:, 1].tolist() == [3.75, 5.5, 7]  # 3 + 8/2, 2 + 7/2, 1 + 5.5/2


def step(log_probability: float, value: float, reward: float, *, acting: bool = True, ended: bool = False) -> Step:
    numbers = [torch.tensor([float(x)], requires_grad=True) for x in (log_probability, 0.7, value)]
    return Step(*numbers, torch.tensor([reward]), torch.tensor([acting]), torch.tensor([ended]))


def test_losses_are_those_of_table_2() -> None:
    """G is 1 + 0.5·2 = 2 and 2; advantages 2 − 1.5 and 2 − 4; the third step is of a box that had ended."""
    steps = [step(-1, 1.5, 1), step(-0.5, 4, 2, ended=True), step(-9, 9, 9, acting=False)]
    settings = AgentSettings(gamma=0.5, entropy=0.1, weight=1.0)
    losses = actor_critic_losses(steps, torch.tensor([8.0]), settings)
    assert losses["loss_agent_policy"].item() == pytest.approx((1 * 0.5 + 0.5 * -2) / 2)
    assert losses["loss_agent_value"].item() == pytest.approx((0.5**2 + 2**2) / 2)
    assert losses["loss_agent_entropy"].item() == pytest.approx(-0.1 * 0.7)


def test_the_advantage_passes_no_gradient_to_the_value() -> None:
    steps = [step(-1, 1.5, 1), step(-0.5, 4, 2)]
    last = torch.tensor([8.0], requires_grad=True)
    losses = actor_critic_losses(steps, last, AgentSettings(gamma=0.5, weight=1.0))
    losses["loss_agent_policy"].backward()  # type: ignore[no-untyped-call]
    assert all(s.value.grad is None for s in steps)
    assert steps[0].log_probability.grad is not None
    losses["loss_agent_value"].backward()  # type: ignore[no-untyped-call]
    # d (G − V)²/dV / n = −(G − V), G the constants 1 + (2 + 8/2)/2 = 4 and 6
    assert [s.value.grad.item() for s in steps if s.value.grad is not None] == pytest.approx([-2.5, -2.0])
    assert last.grad is None


def test_actions_are_drawn_by_their_probabilities() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(4000, 3)
    shares = drawn(logits).bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.03, rtol=0)
    assert drawn(torch.full((2, 3), torch.nan)).shape == (2,)


def test_iou_of_the_same_row() -> None:
    others = torch.tensor([[10.0, 20, 30, 60], [20, 20, 40, 60], [90, 90, 99, 99]])
    assert paired_iou(BOX.expand(3, 4), others).tolist() == pytest.approx([1, 1 / 3, 0])
    assert paired_iou(BOX[:0], BOX[:0]).shape == (0,)


def where(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """A world where a box shows how far its left edge is from 16 px, and whose class is always 1."""
    lack = (boxes[:, 0] - 16) / 20
    pooled = torch.stack([lack, torch.ones_like(lack)], 1)[:, :, None, None].expand(-1, 2, 2, 2)
    return pooled, torch.tensor([0.0, 1.0]).expand(len(boxes), 2)


def agent(**settings: Any) -> BoxAgent:
    torch.manual_seed(0)
    return BoxAgent(2, AgentSettings(hidden=16, step=0.1, **settings))


def test_an_agent_learns_to_move_boxes_onto_their_cells() -> None:
    true = torch.tensor([[16.0, 20, 36, 60]])
    starts = torch.cat([BOX, BOX + torch.tensor([12.0, 0, 12, 0])])  # 6 px to the left of it, and to the right
    model = agent(t_max=4, weight=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    start = Start(starts.repeat(16, 1), true.expand(32, 4), torch.ones(32, dtype=torch.int64))
    for _ in range(120):
        optimizer.zero_grad()
        torch.stack(list(model.learn(start, where).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.inference_mode():
        rest = model.act(starts, where)
    before, after = paired_iou(starts, true.expand(2, 4)), paired_iou(rest, true.expand(2, 4))
    assert (after > before + 0.2).all()


def test_an_agent_that_would_always_move_stops_after_t_max_steps() -> None:
    model = agent(t_max=3)
    with torch.no_grad():
        model.policy.weight.zero_()
        model.policy.bias.copy_(torch.eye(STAY + 1)[0])
    torch.testing.assert_close(model.act(BOX, where), torch.tensor([[16.0, 20, 36, 60]]))


def test_an_episode_is_over_where_class_and_box_are_right() -> None:
    model = agent(t_max=2, weight=1.0, gain=0.0, entropy=0.0)
    with torch.no_grad():
        model.policy.weight.zero_()
        model.policy.bias.copy_(1000 * torch.eye(STAY + 1)[0])  # always to the right
        model.value.weight.zero_()
        model.value.bias.zero_()
    near, one = torch.tensor([[12.0, 20, 32, 60]]), torch.tensor([1])
    assert model.learn(Start(BOX, near, one), where)["loss_agent_value"] == 1  # one step, whose reward is 1
    assert (
        model.learn(Start(BOX, near, one + 1), where)["loss_agent_value"] == 0
    )  # the class is wrong: no reward in two


def test_without_boxes_the_losses_are_zero_and_have_gradients() -> None:
    model = agent()
    losses = model.learn(Start(BOX[:0], BOX[:0], torch.zeros(0, dtype=torch.int64)), where)
    assert [term.item() for term in losses.values()] == [0, 0, 0]
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert model.act(BOX[:0], where).shape == (0, 4)


@pytest.mark.parametrize("settings", [{"t_max": 0}, {"boxes": 0}, {"step": 1.0}])
def test_an_agent_that_cannot_act_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        AgentSettings(**settings)  # type: ignore[arg-type]


def test_there_are_eight_actions_beside_staying() -> None:
    assert len({*ACTIONS}) == STAY == 8
