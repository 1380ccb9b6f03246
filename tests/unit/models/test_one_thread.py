"""Modules that run in one thread, whoever calls them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from wbc.models import one_thread
from wbc.models.one_thread import InOneThread


class Witness(nn.Module):
    """Says which thread it runs in, and whether gradients would be kept there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[threading.Thread] = []
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append(threading.current_thread())
        if len(x) == 0:
            raise LookupError("nothing to do")
        return self.weight * x + y


def test_a_module_runs_in_one_thread_whoever_calls() -> None:
    modules = [InOneThread(Witness()), InOneThread(Witness())]
    every = threading.Barrier(4)

    def call(i: int) -> Tensor:
        every.wait(10)
        answer: Tensor = modules[i % 2](torch.full((3,), float(i)), torch.ones(3))
        return answer

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(call, range(4)))
    for i, answer in enumerate(answers):
        assert torch.equal(answer, torch.full((3,), i + 1.0))
        assert not answer.requires_grad
    seen = {thread for module in modules for thread in module.module.seen}
    assert len(seen) == 1
    assert threading.current_thread() not in seen


def test_an_error_is_told_to_who_called_and_to_nobody_else() -> None:
    module = InOneThread(Witness())
    with pytest.raises(LookupError, match="nothing to do"):
        module(torch.ones(0), torch.ones(0))
    assert module(torch.ones(3), torch.zeros(3)).sum() == 3
    assert set(module.state_dict()) == {"module.weight"}


def test_no_thread_is_started_before_one_is_needed() -> None:
    one_thread._thread.cache_clear()
    InOneThread(Witness())
    assert one_thread._thread.cache_info().currsize == 0
