"""Modules that run in one thread of their process, whoever calls them: what a GPU wants."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import nn


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "models")


class InOneThread(nn.Module):
    """A module for inference that waits its turn in the one thread of this process that runs such modules.

    cuDNN's plans of convolutions are kept for each thread apart (PyTorch's Conv_v8.cpp), and all those of a detector
    take it seconds to make. Meanwhile the threads that call prepare what comes next.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        """What the module makes of its inputs."""
        return _thread().submit(self._run, inputs).result()

    @torch.inference_mode()
    def _run(self, inputs: tuple[Any, ...]) -> Any:
        return self.module(*inputs)
