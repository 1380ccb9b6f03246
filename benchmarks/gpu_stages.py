"""Where a field's time goes on a GPU: stage by stage with the device waited for, and kernel by kernel."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import wbc.cells.classify as naming
import wbc.cells.detect as looking
from benchmarks.gpu_fields import UM_PER_PX
from benchmarks.gpu_subject import Pixels, Subject
from wbc.storage.images import decode_field, digest
from wbc.taxonomy import GENERIC
from wbc.types import Detections

LOWEST_SCORE = 0.05
# Size of fields, how many go through `detect` together, and the most pixels of a forward pass.
CALLS = (
    ("large", 1, 1_100_000),
    ("large", 4, 4_400_000),
    ("large", 8, 13_200_000),
    ("small", 16, 1_100_000),
    ("small", 64, 6_600_000),
)
CALLS_ON_CPU = (("large", 1, 1_100_000), ("small", 2, 1_100_000))
TRACED = (("large", 1, 1_100_000), ("large", 8, 13_200_000), ("small", 64, 6_600_000))
MOST_KERNELS = 14


class Stopwatch:
    """Seconds of each stage by itself, without those that it calls; the device is waited for at both ends."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.own: Counter[str] = Counter()
        self.synchronize, self.running, self.since = synchronize, ["rest"], time.perf_counter()

    def enter(self, stage: str) -> None:
        """A stage begins within the one that runs."""
        self._book()
        self.running.append(stage)

    def leave(self) -> None:
        """The innermost stage ends."""
        self._book()
        self.running.pop()

    def _book(self) -> None:
        self.synchronize()
        now = time.perf_counter()
        self.own[self.running[-1]] += now - self.since
        self.since = now

    def on(self, place: Any, name: str, stage: str) -> Any:
        """A patch under which the function `place.name` is a stage."""
        function = getattr(place, name)

        @wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            self.enter(stage)
            try:
                return function(*given, **named)
            finally:
                self.leave()

        return patch.object(place, name, timed)

    @contextmanager
    def over(self, module: nn.Module, stage: str) -> Iterator[None]:
        """Within, each call of the module is a stage."""
        before = module.register_forward_pre_hook(lambda *_: self.enter(stage))
        after = module.register_forward_hook(lambda *_: self.leave())
        try:
            yield
        finally:
            before.remove()
            after.remove()


def rows(subject: Subject) -> Iterator[dict[str, object]]:
    """For each size and batch: ms a field as it is, and of each stage."""
    for size, n, batch_px in subject.in_time(CALLS if subject.is_gpu else CALLS_ON_CPU):
        given = subject.many(size, n)
        files = [subject.jpegs[size][i % len(subject.jpegs[size])] for i in range(n)]
        found = _look(subject, given, batch_px)
        white = sum(int(_is_white(subject, d).sum()) for d in found)
        _name(subject, given, found)
        bare = subject.seconds(lambda f=given, b=batch_px: _look(subject, f, b), 0.4)  # type: ignore[misc]
        named = subject.seconds(lambda f=given, d=found: _name(subject, f, d), 0.2)  # type: ignore[misc]
        watch = Stopwatch(subject.synchronize)
        with _watched(subject, watch):
            fields = [_decoded(watch, file) for file in files]
            _name(subject, fields, _look(subject, fields, batch_px))
        watch.enter("end")
        call = {"fields": f"{n} {size}", "batch Mpx": batch_px / 1e6}
        ms = {"detect": 1e3 * bare / n, "classify": 1e3 * named / n, "fields/s": n / (bare + named)}
        yield call | ms | {"cells": sum(map(len, found)) / n, "white": white / n} | _memory(subject)
        stages = {k: round(1e3 * v / n, 3) for k, v in watch.own.most_common()}
        yield from (
            {"of a call": f"{n} {size}, {batch_px / 1e6}", "stage": k, "ms a field": v} for k, v in stages.items()
        )


def _look(subject: Subject, fields: list[Pixels], batch_px: int) -> list[Detections]:
    return looking.detect(fields, subject.shipped, UM_PER_PX, LOWEST_SCORE, batch_px=batch_px)


def _name(subject: Subject, fields: list[Pixels], found: list[Detections]) -> None:
    boxes = [cells.boxes[_is_white(subject, cells)] for cells in found]
    naming.classify_together(fields, boxes, UM_PER_PX, subject.classifier)


def _is_white(subject: Subject, cells: Detections) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return np.asarray(cells.labels == subject.detector.card.classes.index(GENERIC) + 1)


def _decoded(watch: Stopwatch, content: bytes) -> Pixels:
    watch.enter("digest")
    digest(content)
    watch.leave()
    watch.enter("decode")
    pixels = decode_field("field", content)
    watch.leave()
    return pixels


@contextmanager
def _watched(subject: Subject, watch: Stopwatch) -> Iterator[None]:
    module: Any = subject.shipped.module
    parts = {
        "pictures to a batch": module.transform,
        "backbone": module.backbone.body,
        "pyramid": module.backbone.fpn,
        "proposal head": module.rpn.head,
        "proposals": module.rpn,
        "RoIAlign": module.roi_heads.box_roi_pool,
        "box head": module.roi_heads.box_head,
        "box predictor": module.roi_heads.box_predictor,
        "boxes, NMS": module.roi_heads,
        "classifier": subject.classifier.module,
    }
    functions = (
        (looking, "rescale", "rescale"),
        (looking, "rescale_on", "field to device and scaled"),
        (looking, "_to_tensor", "tile to device"),
        (looking, "run_tiles", "results to host"),
        (looking, "merge", "merge"),
        (naming, "cut_crops", "crops"),
        (naming, "appearance", "appearance"),
        (naming, "_views", "crops to device"),
    )
    with ExitStack() as stack:
        for stage, part in parts.items():
            stack.enter_context(watch.over(part, stage))
        for place, name, stage in functions:
            stack.enter_context(watch.on(place, name, stage))
        yield


def _memory(subject: Subject) -> dict[str, object]:
    if not subject.is_gpu:
        return {}
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return {"GiB": most}


def kernels(subject: Subject) -> Iterator[dict[str, object]]:
    """What the device itself works on a field, and how much of the time; the kernels that take most of it."""
    if not subject.is_gpu:
        return
    from torch.profiler import ProfilerActivity, profile

    for size, n, batch_px in subject.in_time(TRACED):
        fields = subject.many(size, n)
        found = _look(subject, fields, batch_px)

        def work(fields: list[Pixels] = fields, batch_px: int = batch_px, found: list[Detections] = found) -> None:
            _look(subject, fields, batch_px)
            _name(subject, fields, found)

        seconds = subject.seconds(work, 0.3)
        with profile(activities=[ProfilerActivity.CUDA]) as trace:
            work()
            subject.synchronize()
        events = [e for e in trace.key_averages() if str(e.device_type).endswith("CUDA")]
        events.sort(key=lambda e: -e.self_device_time_total)
        busy = sum(e.self_device_time_total for e in events) / 1e6
        subject.device_ms[size] = 1e3 * busy / n
        yield {
            "fields": f"{n} {size}",
            "batch Mpx": batch_px / 1e6,
            "wall ms a field": 1e3 * seconds / n,
            "device ms a field": 1e3 * busy / n,
            "device busy": busy / seconds,
            "kernels and copies a call": sum(e.count for e in events),
        }
        for event in events[:MOST_KERNELS]:
            ms = event.self_device_time_total / 1e3 / n
            yield {"of": f"{n} {size}", "kernel": event.key[:90], "n": event.count, "ms a field": ms}
