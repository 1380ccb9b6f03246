"""What all parts of `benchmarks.gpu` work on: the models on the device, in number formats of choice, and fields."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from benchmarks.gpu_fields import Rendering
from wbc.models import registry
from wbc.models.bfloat16 import InBfloat16, has_bfloat16
from wbc.models.engines import ready_classifier
from wbc.models.inference import for_inference
from wbc.models.one_thread import InOneThread
from wbc.models.registry import LoadedModel
from wbc.storage.images import decode_field

Pixels = NDArray[np.uint8]
CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass
class Subject:
    """The device, the models on it as they are loaded, the folder of data, and rendered fields."""

    device: torch.device
    data: Path
    detector: LoadedModel
    classifier: LoadedModel
    rendering: Rendering
    device_ms: dict[str, float] = field(default_factory=dict)  # of a field's kernels and copies, by size, once traced
    ends: float = math.inf  # when a part should have ended, on the monotonic clock
    left_out: int = 0  # how many of its steps were left out for that

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to measure; a CPU only tries the script out, on less."""
        return self.device.type == "cuda"

    @cached_property
    def jpegs(self) -> dict[str, list[bytes]]:
        """Rendered fields as files, by size."""
        return {name: [f.result() for f in getattr(self.rendering, name)] for name in ("large", "small")}

    @cached_property
    def fields(self) -> dict[str, list[Pixels]]:
        """The same as pixels uint8 (H,W,3)."""
        return {name: [decode_field(name, f) for f in files] for name, files in self.jpegs.items()}

    @cached_property
    def shipped(self) -> LoadedModel:
        """The detector as a count runs it."""
        return self.ready()

    def ready(self, half: bool | None = None, change: Callable[[nn.Module], None] | None = None) -> LoadedModel:
        """A detector ready for the device; `half` overrules its number format, `change` is made to it last."""
        return ready_on(self.detector, self.device, half, change)

    def many(self, size: str, n: int) -> list[Pixels]:
        """So many fields of a size, in turns."""
        own = self.fields[size]
        return [own[i % len(own)] for i in range(n)]

    def in_time(self, steps: Iterable[T]) -> Iterator[T]:
        """The steps of a part: the first, and those that end in time if they take as long as the longest before."""
        longest = 0.0
        for step in steps:
            began = time.monotonic()
            if began + longest > self.ends and longest:
                self.left_out += 1
                continue
            yield step
            longest = max(longest, time.monotonic() - began)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], at_least: float = 0.3, most: int = 50) -> float:
        """The median time of `work` on a warm device, of as many calls as fit `at_least` seconds."""
        work()
        self.synchronize()
        spent: list[float] = []
        least = 3 if self.is_gpu else 1
        while len(spent) < least or (sum(spent) < at_least and len(spent) < most):
            began = time.perf_counter()
            work()
            self.synchronize()
            spent.append(time.perf_counter() - began)
        return median(spent)

    def machine(self) -> dict[str, object]:
        """Where this ran."""
        return {
            "device": torch.cuda.get_device_name(self.device) if self.is_gpu else "cpu",
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "bfloat16 on it, on the CPU": [has_bfloat16(self.device), has_bfloat16(CPU)],
        }


def subject_of(data: Path, device: str, rendering: Rendering) -> Subject:
    """The bundled models on `device`: the detector as it is loaded, the classifier ready to run, in any thread."""
    there = registry.resolve_device(device)
    detector = registry.load(registry.resolve("bundled:detector", "detector")[0], there)
    classifier = ready_classifier(registry.resolve("bundled:classifier", "classifier")[0], there)
    if isinstance(classifier.module, InOneThread):
        classifier = replace(classifier, module=classifier.module.module)
    return Subject(torch.device(device), data, detector, classifier, rendering)


def ready_on(
    loaded: LoadedModel, device: torch.device, half: bool | None, change: Callable[[nn.Module], None] | None = None
) -> LoadedModel:
    """A copy of a detector ready for `device`, in bfloat16, in float32, or (None) as it is on such a device."""
    module = copy.deepcopy(loaded.module).to(device)
    for part in module.modules():
        if isinstance(part, InBfloat16) and half is not None:
            part.half_precision = half
    ready = for_inference(module, device)
    if change is not None:
        change(ready)
    return replace(loaded, module=ready, device=device)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether convolutions in float32 may round to ten bits on a GPU, as torch has it unasked."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
