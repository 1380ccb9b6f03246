"""One training loop for every recipe: steps, schedule, averaged weights, checkpoints that resume exactly."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from wbc.training.checkpoint import Digest, restore, save
from wbc.training.memory import keep_freed_memory
from wbc.training.processes import mean_of_all, n_processes, rank, shared
from wbc.training.progress import Curves, current_watchers

log = logging.getLogger(__name__)
LARGEST_GRADIENT = 5.0  # the norm that all gradients together are cut to


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """`steps` of `batch` samples: a linear warm-up, a plateau at `rate`, a linear fall.

    The fall takes the last `decay` part of the steps. With `fall_every`, it falls instead to `fall_to`
    of what it was after every so many steps. `optimizer` is AdamW, Adam, or SGD with `momentum`. `average` is the
    decay of the weights' exponential moving average, which is what training returns. Parameters whose names start with
    one of `slow` learn at half the rate; `seconds` (0: no limit) ends a run early, at a checkpoint. What a recipe
    watches is measured every `watch_every` steps (0: never).
    """

    steps: int
    batch: int
    rate: float = 4e-4
    weight_decay: float = 0.02
    warm_up: int = 100
    decay: float = 0.4
    average: float = 0.998
    slow: tuple[str, ...] = ("backbone.body",)
    seed: int = 0
    checkpoint_every: int = 50
    data_workers: int = 1
    seconds: float = 0.0
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.9
    watch_every: int = 0
    fall_every: int = 0
    fall_to: float = 0.85


class Samples(Protocol):
    """What a training draws from: sample i depends on i alone."""

    def __getitem__(self, index: int) -> Any:
        """Sample `index`."""

    def pictures(self, index: int) -> list[str]:
        """The pictures that sample `index` is made of, as a person finds them."""

    @property
    def digest(self) -> str:
        """Stands for all that the samples are made of."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model learns: `samples`, put together to a batch by `collate`, whose `losses` are to shrink.

    `losses(model, batch)` are terms by name; `watch` measures a model in eval mode now and then. `teacher` is the
    digest of a model that they ask, too, if any.
    """

    samples: Samples
    collate: Callable[[list[Any]], Any]
    losses: Callable[[nn.Module, Any], dict[str, Tensor]]
    watch: Callable[[nn.Module], dict[str, float]] | None = None
    teacher: str = ""


def rate_factor(step: int, settings: LoopSettings) -> float:
    """The learning rate at `step` as a fraction of its peak."""
    if settings.fall_every:
        return min(1.0, (step + 1) / max(1, settings.warm_up)) * settings.fall_to ** (step // settings.fall_every)
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return max(0.0, min(1.0, (step + 1) / max(1, settings.warm_up), left))


def fit(model: nn.Module, lesson: Lesson, settings: LoopSettings, checkpoint: Path) -> nn.Module:
    """Train `model` on `samples[0 .. steps*batch)` and return it with averaged weights, in eval mode.

    The model is trained on the device that it is on, in mixed precision (bfloat16) on a GPU; where several processes
    train together, each takes its part of every batch. A run that is stopped anywhere and started again with the same
    `checkpoint` file carries on as if it had never stopped. Raises FloatingPointError where the loss is not finite,
    ValueError where `checkpoint` is of another version, other data or another teacher, OSError where there is no room
    for one.
    """
    state = _State(model, lesson, settings)
    if state.device.type == "cpu":
        keep_freed_memory()
    step = state.restored(checkpoint)
    watchers, started, first = current_watchers() if rank() == 0 else (), time.monotonic(), step
    for watcher in watchers:
        watcher.begins(checkpoint.parent.name, step, settings.steps)
    for batch in _batches(lesson, settings, step):
        losses = state.learn(batch, step)
        step += 1
        late = _late(time.monotonic() - started, settings.seconds)
        state.watch(step)
        for watcher in watchers:
            watcher.step_done(step, losses)
        if step % settings.checkpoint_every == 0 or step == settings.steps or late:
            state.save(checkpoint, step)
            log.info(
                "step %d of %d, %.2f s a step", step, settings.steps, (time.monotonic() - started) / (step - first)
            )
            for watcher in watchers:
                watcher.checkpointed(step, state.curves)
        if late:
            break
    result: nn.Module = state.averaged.module
    return result.eval()


def _late(seconds: float, most: float) -> bool:
    """Whether the time is over; all processes say the same."""
    return most > 0 and mean_of_all({"late": float(seconds > most)})["late"] > 0


class _State:
    """All of a training that a checkpoint holds, and what a step does to it."""

    def __init__(self, model: nn.Module, lesson: Lesson, settings: LoopSettings) -> None:
        self.model, self.lesson, self.settings = model.train(), lesson, settings
        self.device = next(model.parameters()).device
        self.optimizer = _optimizer(model, settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: rate_factor(step, settings))
        averaging = get_ema_multi_avg_fn(settings.average)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
        self.curves = Curves()
        self.together = shared(model)

    @property
    def parts(self) -> dict[str, Any]:
        teacher = {"teacher": Digest("the teacher was", self.lesson.teacher)} if self.lesson.teacher else {}
        return {
            **teacher,
            "data": Digest("the data were", self.lesson.samples.digest),
            "model": self.model,
            "averaged": self.averaged,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "curves": self.curves,
        }

    def restored(self, checkpoint: Path) -> int:
        """Steps that are behind it: those of the checkpoint, if there is one."""
        if not checkpoint.exists():
            return 0
        step = restore(checkpoint, self.parts, self.device)
        log.info("resumed at step %d of %d", step, self.settings.steps)
        return step

    def save(self, checkpoint: Path, step: int) -> None:
        """Write the checkpoint, and the curves beside it."""
        if rank() == 0:
            save(checkpoint, self.parts, step)
            self.curves.write(checkpoint.parent)

    def learn(self, batch: Any, step: int) -> dict[str, float]:
        """Step number `step`, on one batch; the terms of its loss.

        Raises FloatingPointError where the loss is not finite.
        """
        torch.manual_seed(self.settings.seed * 1_000_003 + step + 7_368_787 * rank())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            terms = self.lesson.losses(self.together, batch)
        values = {name: term.item() for name, term in terms.items()}
        if not all(map(math.isfinite, values.values())):
            raise FloatingPointError(f"step {step}: loss {values}; the batch's pictures: {self._pictures(step)}")
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.model)
        means = mean_of_all(values)
        self.curves.add_losses(means)
        return means

    def _pictures(self, step: int) -> str:
        names = (name for i in _drawn(self.settings, step) for name in self.lesson.samples.pictures(i))
        return ", ".join(dict.fromkeys(names))

    def watch(self, step: int) -> None:
        """Measure what the recipe watches, where it is time for it."""
        due = self.settings.watch_every and (step % self.settings.watch_every == 0 or step == self.settings.steps)
        if due and self.lesson.watch is not None and rank() == 0:
            with torch.no_grad():
                self.curves.add_figures(step, self.lesson.watch(self.averaged.module.eval()))


def _optimizer(model: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = _groups(trained, settings)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.rate, settings.momentum, weight_decay=settings.weight_decay)
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, settings.rate, weight_decay=settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.rate, weight_decay=settings.weight_decay)


def _groups(trained: Mapping[str, nn.Parameter], settings: LoopSettings) -> list[dict[str, Any]]:
    def group(slow: bool, flat: bool) -> dict[str, Any]:
        parameters = [p for n, p in trained.items() if n.startswith(settings.slow) == slow and (p.ndim < 2) == flat]
        return {
            "params": parameters,
            "lr": settings.rate * (0.5 if slow else 1.0),
            "weight_decay": 0.0 if flat else settings.weight_decay,
        }

    return [g for g in (group(s, f) for s in (False, True) for f in (False, True)) if g["params"]]


def _drawn(settings: LoopSettings, step: int) -> range:
    """The numbers of the samples of this process's part of a step's batch."""
    share = settings.batch // n_processes()
    first = step * settings.batch + rank() * share
    return range(first, first + share)


def _batches(lesson: Lesson, settings: LoopSettings, start: int) -> Iterator[Any]:
    samples: Any = lesson.samples  # a data set to torch, by its one method
    order = [_drawn(settings, step) for step in range(start, settings.steps)]
    return iter(
        DataLoader(samples, batch_sampler=order, collate_fn=lesson.collate, num_workers=settings.data_workers)  # type: ignore[arg-type]
    )
