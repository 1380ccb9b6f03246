"""What a model costs for one input: parameters, operations, time, memory."""

import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.inference_mode()
def costs_of(model: nn.Module, given: Any, unit: str, rounds: int) -> dict[str, Any]:
    """A model's costs in this process, with whatever weights it has; `unit` is what it is given, the time a median.

    GFLOPs are torch's count, a multiplication and an addition two; the memory is the process's peak.
    """
    model(given)
    with FlopCounterMode(display=False) as counter:
        model(given)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        model(given)
        seconds.append(time.perf_counter() - start)
    return {
        "M parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "GFLOPs": counter.get_total_flops() / 1e9,
        f"ms a {unit}": 1000 * statistics.median(seconds),
        "peak MB": peak_mb(),
        "threads": torch.get_num_threads(),
    }


def peak_mb() -> float:
    """The most memory that this process has held. What `getrusage` tells of a child begins with its parent's peak."""
    held = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert held, "Linux tells it"
    return int(held[1]) / 1024
