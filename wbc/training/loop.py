"""One training loop for every recipe: steps, schedule, averaged weights, checkpoints that resume exactly."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from upath import UPath

from wbc.storage.atomic import write_whole

log = logging.getLogger(__name__)
LARGEST_GRADIENT = 5.0  # the norm that all gradients together are cut to


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """`steps` of `batch` samples by AdamW: a linear warm-up, a plateau at `rate`, a linear fall.

    The fall takes the last `decay` part of the steps. `average` is the decay of the weights' exponential moving
    average, which is what training returns. Parameters whose names start with one of `slow` learn at half the rate;
    `seconds` (0: no limit) ends a run early, at a checkpoint.
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


def rate_factor(step: int, settings: LoopSettings) -> float:
    """The learning rate at `step` as a fraction of its peak."""
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return max(0.0, min(1.0, (step + 1) / max(1, settings.warm_up), left))


def fit(
    model: nn.Module,
    samples: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
    settings: LoopSettings,
    checkpoint: Path,
) -> nn.Module:
    """Train `model` on `samples[0 .. steps*batch)` and return it with averaged weights, in eval mode.

    The model is trained on the device that it is on, in mixed precision (bfloat16) on a GPU. Sample i must depend on i
    alone: a run that is stopped anywhere and started again with the same `checkpoint` file carries on as if it had
    never stopped. Raises FloatingPointError where the loss is not finite, ValueError where `checkpoint` is not one of
    this version.
    """
    model.train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(_groups(trained, settings), lr=settings.rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, settings))
    averaging = get_ema_multi_avg_fn(settings.average)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)
    parts = {"model": model, "averaged": averaged, "optimizer": optimizer, "schedule": schedule}
    step = _restore(checkpoint, parts, next(model.parameters()).device) if checkpoint.exists() else 0
    if step:
        log.info("resumed at step %d of %d", step, settings.steps)

    started, first = time.monotonic(), step
    smoothed: dict[str, float] = {}
    for batch in _batches(samples, collate, settings, step):
        torch.manual_seed(settings.seed * 1_000_003 + step)
        terms = _learn(model, batch, losses, optimizer, step)
        schedule.step()
        averaged.update_parameters(model)
        step += 1
        smoothed = {name: 0.95 * smoothed.get(name, value) + 0.05 * value for name, value in terms.items()}
        late = 0 < settings.seconds < time.monotonic() - started
        if step % settings.checkpoint_every == 0 or step == settings.steps or late:
            _save(checkpoint, parts, step)
            pace = (time.monotonic() - started) / (step - first)
            means = {name: round(value, 4) for name, value in smoothed.items()}
            log.info("step %d of %d, %.2f s a step, %s", step, settings.steps, pace, means)
        if late:
            break
    result: nn.Module = averaged.module
    return result.eval()


def _learn(
    model: nn.Module,
    batch: Any,
    losses: Callable[[nn.Module, Any], dict[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> dict[str, float]:
    """Step number `step`, on one batch; the terms of its loss by name.

    Raises FloatingPointError where the loss is not finite.
    """
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        terms = losses(model, batch)
    total = torch.stack(list(terms.values())).sum()
    values = {name: term.item() for name, term in terms.items()}
    if not torch.isfinite(total):
        raise FloatingPointError(f"step {step}: loss {values}")
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    optimizer.step()
    return values


def _restore(checkpoint: Path, parts: Mapping[str, Any], device: torch.device) -> int:
    """Put every part back to what it was; the step that it had come to."""
    saved = torch.load(checkpoint, map_location=device, weights_only=True)
    if lacking := sorted(parts.keys() - saved.keys()):
        raise ValueError(
            f"{checkpoint}: it has no {', '.join(lacking)}, and is from another version of wbc: delete it to start over"
        )
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


def _save(checkpoint: Path, parts: Mapping[str, Any], step: int) -> None:
    """The whole state or none of it, whenever the process is stopped."""
    content = BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, content)
    write_whole(UPath(checkpoint), content.getvalue())


def _groups(trained: dict[str, nn.Parameter], settings: LoopSettings) -> list[dict[str, Any]]:
    def group(slow: bool, flat: bool) -> dict[str, Any]:
        parameters = [p for n, p in trained.items() if n.startswith(settings.slow) == slow and (p.ndim < 2) == flat]
        return {
            "params": parameters,
            "lr": settings.rate * (0.5 if slow else 1.0),
            "weight_decay": 0.0 if flat else settings.weight_decay,
        }

    return [g for g in (group(s, f) for s in (False, True) for f in (False, True)) if g["params"]]


def _batches(
    samples: Dataset[Any], collate: Callable[[list[Any]], Any], settings: LoopSettings, start: int
) -> Iterator[Any]:
    order = range(start * settings.batch, settings.steps * settings.batch)
    return iter(
        DataLoader(
            samples,
            batch_size=settings.batch,
            sampler=order,
            collate_fn=collate,
            num_workers=settings.data_workers,
        )
    )
