"""Two processes that train together learn what one does, and an error of one is the training's."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loop import DETECTOR, FourPictures, Numbers, squares, stack
from torch import Tensor, nn

from wbc.models import builders
from wbc.training.detector import detection_losses, freeze_body
from wbc.training.loop import Lesson, LoopSettings, fit
from wbc.training.processes import processes_for, rank, train_together
from wbc.training.progress import Curves, watching

ONE_STEP = LoopSettings(
    steps=1,
    batch=2,
    rate=1.0,
    weight_decay=0,
    warm_up=0,
    decay=0,
    average=0,
    slow=(),
    data_workers=0,
    optimizer="sgd",
    momentum=0,
)


def gradients(model: nn.Module, lesson: Lesson, checkpoint: Path) -> dict[str, Any]:
    """What one step of gradient descent at a rate of 1 takes from the weights."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    after = dict(fit(model, lesson, ONE_STEP, checkpoint).named_parameters())
    return {name: (value - after[name].detach()).numpy() for name, value in before.items()}


def gradients_of_both(folder: Path, device: str) -> dict[str, Any]:
    """Of a small net and of the detector, which looks at its first anchors and regions: no dice."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    found = gradients(plain, Lesson(Numbers(), stack, squares), folder / "plain.pt")
    arguments = dict(DETECTOR.arguments) | {"lowest_objectness": 0.0}
    detector: Any = builders.build(replace(DETECTOR, arguments=arguments)).train()
    freeze_body(detector, ())
    randperm, torch.randperm = torch.randperm, _in_order  # type: ignore[assignment]
    try:
        return found | gradients(detector, Lesson(FourPictures(), list, detection_losses), folder / "detector.pt")
    finally:
        torch.randperm = randperm


def _in_order(n: int, device: Any = None) -> Tensor:
    return torch.arange(n, device=device)


def failing(device: str) -> None:
    if rank() == 1:
        raise FloatingPointError("step 3: loss nan")
    torch.distributed.barrier()


class Notes:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begins(self, name: str, step: int, steps: int) -> None:
        self.told.append(("begins", step, steps))

    def step_done(self, step: int, losses: Any) -> None:
        self.told.append(("step", step, sorted(losses)))

    def checkpointed(self, step: int, curves: Curves) -> None:
        self.told.append(("checkpoint", step, len(curves.total_loss)))


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    alone = train_together(1, "cpu", gradients_of_both, folders[0])
    with watching(notes := Notes()):
        together = train_together(2, "cpu", gradients_of_both, folders[1])
    assert alone.keys() == together.keys()
    assert max(np.abs(value).max() for value in alone.values()) > 0.1
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, atol=1e-5, rtol=0)
    assert notes.told[:3] == [("begins", 0, 1), ("step", 1, ["loss"]), ("checkpoint", 1, 1)]
    assert len(notes.told) == 6


def test_an_error_of_one_process_ends_all(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="step 3: loss nan"):
        train_together(2, "cpu", failing)


@pytest.mark.parametrize(
    ("device", "wanted", "batch", "told"),
    [
        ("cpu", 2, 3, "2 processes cannot share a batch of 3 evenly"),
        ("cuda:1", 2, 4, "2 processes on cuda:1: there are 0 GPUs"),
    ],
)
def test_processes_that_cannot_share_the_work_are_refused(device: str, wanted: int, batch: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        processes_for(device, wanted, batch)


def test_one_process_is_the_default_on_a_cpu_and_one_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_for("cpu", 0, 8) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert processes_for("cuda", 0, 6) == 3
    assert processes_for("cuda", 0, 4) == 2
    assert processes_for("cuda:1", 0, 4) == 1
    assert processes_for("cuda", 1, 4) == 1


def waiting(folder: Path, device: str) -> None:
    """In a process as a script starts it in the background: it takes no notice of SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (folder / str(rank())).write_text(str(os.getpid()))
    time.sleep(600)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.1)


def test_a_training_that_is_killed_leaves_no_process_that_learns_on(tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=train_together, args=(2, "cpu", waiting, tmp_path))
    parent.start()
    notes = [tmp_path / "0", tmp_path / "1"]
    until(lambda: all(note.exists() and note.read_text() for note in notes))
    pids = [int(note.read_text()) for note in notes]
    assert all(map(is_alive, pids))
    parent.kill()
    until(lambda: not any(map(is_alive, pids)), 20)
    parent.join()
