"""An actor-critic agent that moves boxes step by step to the cells that they are on (Wang 2021, Table 2)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wbc.models.attention import AttentiveLSTM, State

# By how many steps an action moves the middle (x, y), and stretches the sides (width, height).
ACTIONS = (
    (1, 0, 0, 0),
    (-1, 0, 0, 0),
    (0, 1, 0, 0),
    (0, -1, 0, 0),
    (0, 0, 1, 0),
    (0, 0, -1, 0),
    (0, 0, 0, 1),
    (0, 0, 0, -1),
)
STAY = len(ACTIONS)  # the last action ends the box's episode
See = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The agent: an LSTM of `hidden` units, actions of `step` of a box's side, at most `t_max` of them a box.

    The paper gives no number and leaves actions and rewards open. Here, after Caicedo and Lazebnik 2015, eight actions
    move or stretch a box and one leaves it. A reward is the IoU gained times `gain`, and 1 more at the terminal
    state: the class is right and the IoU at least `close_iou`. `gamma` discounts, `entropy` is Table 2's β; all three
    losses are scaled by `weight`. In training the `boxes` of a picture that rank first by IoU are moved ("the local
    search is conducted by the ranks of IoUs"). T_max is the end of the training: the steps of its loop.
    """

    hidden: int = 128
    step: float = 0.05
    t_max: int = 5
    close_iou: float = 0.9
    gain: float = 10.0
    gamma: float = 0.9
    entropy: float = 0.01
    weight: float = 0.1
    boxes: int = 32

    def __post_init__(self) -> None:
        if self.t_max < 1 or self.boxes < 1 or not 0 < self.step < 1:
            raise ValueError(f"t_max and boxes are at least 1, step is between 0 and 1: {self}")


@dataclass(frozen=True, slots=True)
class Start:
    """Boxes (N,4) that an agent starts from, the true ones (N,4) that they are meant for, and those's labels (N,)."""

    boxes: Tensor
    true_boxes: Tensor
    labels: Tensor

    @staticmethod
    def joined(parts: Sequence["Start"]) -> "Start":
        """The boxes of several pictures, one after the other."""
        return Start(*(torch.cat([getattr(p, name) for p in parts]) for name in ("boxes", "true_boxes", "labels")))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of N episodes, a number for each: log π(a|s), the entropy of π, V(s), R, and who acted and ended."""

    log_probability: Tensor
    entropy: Tensor
    value: Tensor
    reward: Tensor
    acting: Tensor
    ended: Tensor


class BoxAgent(nn.Module):
    """Policy and value of a box by what is pooled from it: Table 2 with the region for its image x_t.

    Each step attends to the features pooled from the box as it stands (equations 1 to 3, with every place open) and
    passes the context through the LSTM, whose hidden state is s_t. θ and θ_v share all but their last layer. Table 2's
    copies θ' are those of asynchronous agents; here all boxes of a batch act side by side and one update follows.
    """

    def __init__(self, features: int, settings: AgentSettings) -> None:
        super().__init__()
        self.step = AttentiveLSTM(features, settings.hidden)
        self.policy = nn.Linear(settings.hidden, len(ACTIONS) + 1)
        self.value = nn.Linear(settings.hidden, 1)
        self.settings = settings

    def forward(self, pooled: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Regions (N,C,bins,bins) and the state before -> the policy's logits (N,9), values (N,), the state after."""
        places = pooled.flatten(2).transpose(1, 2)
        state, _ = self.step(state, places, places.new_ones(places.shape[:2]))
        return self.policy(state[0]), self.value(state[0])[:, 0], state

    def learn(self, start: Start, see: See) -> dict[str, Tensor]:
        """The losses of one episode of each box.

        `see` takes boxes (N,4) and gives what is pooled from them (N,C,bins,bins), and the logits of their classes
        (N,classes), from which no gradient comes.
        """
        steps: list[Step] = []
        boxes, acting = start.boxes, torch.ones_like(start.labels, dtype=torch.bool)
        iou, (pooled, _) = paired_iou(boxes, start.true_boxes), see(boxes)
        state = self.step.start(len(boxes), pooled)
        for _ in range(self.settings.t_max):
            logits, value, state = self(pooled, state)
            action = drawn(logits.detach()).masked_fill(~acting, STAY)
            boxes, before = moved(boxes, action, self.settings.step), iou
            iou, (pooled, seen) = paired_iou(boxes, start.true_boxes), see(boxes)
            terminal = (seen.argmax(1) == start.labels) & (iou >= self.settings.close_iou)
            reward, ended = self.settings.gain * (iou - before) + terminal.float(), terminal | (action == STAY)
            steps.append(Step(*_judged(logits, action), value, reward, acting, ended))
            acting = acting & ~ended
        return actor_critic_losses(steps, self(pooled, state)[1].detach(), self.settings)

    def act(self, boxes: Tensor, see: See) -> Tensor:
        """The boxes (N,4) where the likeliest actions leave them, after `t_max` steps at most."""
        acting = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        state: State | None = None
        for _ in range(self.settings.t_max):
            pooled, _ = see(boxes)
            logits, _, state = self(pooled, state or self.step.start(len(boxes), pooled))
            action = logits.argmax(1).masked_fill(~acting, STAY)
            boxes, acting = moved(boxes, action, self.settings.step), acting & (action != STAY)
            if not acting.any():
                break
        return boxes


def drawn(logits: Tensor) -> Tensor:
    """An action (N,) by each policy's logits (N,9): the Gumbel way, which bears logits that are no numbers."""
    noise = torch.empty_like(logits).exponential_()
    return (logits - noise.log()).argmax(1)


def _judged(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """log π of each action (N,), and π's entropy (N,)."""
    log = logits.log_softmax(1)
    return log.gather(1, actions[:, None])[:, 0], -(log.exp() * log).sum(1)


def moved(boxes: Tensor, actions: Tensor, step: float) -> Tensor:
    """Boxes (N,4) after one action each (N,); `step` is the fraction of a side that an action moves or stretches."""
    change = boxes.new_tensor((*ACTIONS, (0, 0, 0, 0)))[actions] * step
    sides = boxes[:, 2:] - boxes[:, :2]
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2 + change[:, :2] * sides
    halves = sides * (1 + change[:, 2:]) / 2
    return torch.where((actions == STAY)[:, None], boxes, torch.cat([middles - halves, middles + halves], 1))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N,) of boxes (N,4) with those of the same row."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    areas = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1)
    return shared / (areas - shared).clamp(min=1e-9)


def returns(rewards: Tensor, ended: Tensor, last_value: Tensor, gamma: float) -> Tensor:
    """G (T,N) of rewards (T,N): Table 2's G ← R + γG from the last step on, 0 behind a terminal state.

    `ended` bool (T,N) says where an episode's step was its last; `last_value` V (N,) stands for what comes after T.
    """
    after, steps = last_value, []
    for reward, end in zip(rewards.flip(0), ended.flip(0), strict=True):
        after = reward + gamma * after.masked_fill(end, 0)
        steps.append(after)
    return torch.stack(steps[::-1])


def actor_critic_losses(steps: list[Step], last_value: Tensor, settings: AgentSettings) -> dict[str, Tensor]:
    """What Table 2 descends: −log π·(G − V), (G − V)², −β·H; means over the steps of boxes that acted.

    Neither G nor the advantage passes a gradient to the policy's V. Without a box all three are 0.
    """
    acting = torch.stack([s.acting for s in steps])
    rewards, ended = torch.stack([s.reward for s in steps]), torch.stack([s.ended for s in steps])
    gained = returns(rewards, ended, last_value, settings.gamma).detach()
    lack = gained - torch.stack([s.value for s in steps])
    terms = {
        "loss_agent_policy": -torch.stack([s.log_probability for s in steps]) * lack.detach(),
        "loss_agent_value": lack**2,
        "loss_agent_entropy": -settings.entropy * torch.stack([s.entropy for s in steps]),
    }
    n = acting.sum().clamp(min=1)
    return {name: settings.weight * term.masked_fill(~acting, 0).sum() / n for name, term in terms.items()}
