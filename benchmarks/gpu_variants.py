"""Other ways to run the detector on a GPU: milliseconds a tile of the model alone, its tiles on the device already."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

import wbc.cells.detect as looking
from benchmarks.detect_speed import contiguous
from benchmarks.gpu_fields import UM_PER_PX
from benchmarks.gpu_subject import Subject, tf32
from wbc.cells.tiles import TileSettings
from wbc.models.openvino_network import ProposalsOfNetwork, pad_by_constants
from wbc.models.roi_align import ROWS, MapRows, PyramidRoIAlign, pool_rows

BATCHES, ON_CPU = (2, 16), (1,)
COUNTED_SCORE = 0.7
Change = Callable[[Any], None]


class Graphed(nn.Module):
    """Backbone, pyramid and proposal head as one CUDA graph for each shape of a batch, in the place of a backbone."""

    def __init__(self, backbone: Any, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head, self.out_channels = backbone, head, backbone.out_channels
        self.graphs: dict[torch.Size, tuple[Any, Tensor, dict[str, Tensor]]] = {}

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels (B,3,H,W) -> by number maps, logits and deltas, as `ProposalsOfNetwork` takes them."""
        if pixels.shape not in self.graphs:
            self.graphs[pixels.shape] = self._captured(pixels)
        graph, own, outputs = self.graphs[pixels.shape]
        own.copy_(pixels)
        graph.replay()
        return dict(outputs)  # what is added to it is of this batch alone

    def _captured(self, pixels: Tensor) -> tuple[Any, Tensor, dict[str, Tensor]]:
        own = pixels.clone(memory_format=torch.channels_last)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run(own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._run(own)
        return graph, own, outputs

    def _run(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = list(self.backbone(pixels).values())
        logits, deltas = self.head(maps)
        return {str(i): level for i, level in enumerate((*maps, *logits, *deltas))}


class RowsAnywhere(PyramidRoIAlign):
    """RoIAlign as a weighted sum of rows on whatever device; `dtype` is that of the rows."""

    dtype = torch.float32

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps, regions and pictures' sizes -> pooled regions, as torchvision has them."""
        if self.scales is None or self.map_levels is None:
            return super().forward(x, boxes, image_shapes)
        maps = [x[name] for name in self.featmap_names]
        if ROWS not in x:
            x[ROWS] = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps]).to(self.dtype)
        places = MapRows(x[ROWS], [m.shape for m in maps], self.scales)
        return pool_rows(places, self.map_levels(boxes), boxes, self.output_size, self.sampling_ratio)


def graphed(module: Any) -> None:
    """Backbone, pyramid and proposal head as one CUDA graph."""
    module.backbone = Graphed(module.backbone, module.rpn.head)
    module.rpn = ProposalsOfNetwork(module.rpn)


def constant_pads(module: Any) -> None:
    """TensorFlow's paddings as they are for even sides, not reckoned at each call."""
    pad_by_constants(module.backbone)


def pooled_by(kind: type[MultiScaleRoIAlign]) -> Change:
    """RoIAlign of another kind."""

    def change(module: Any) -> None:
        old = module.roi_heads.box_roi_pool
        scales = {"canonical_scale": old.canonical_scale, "canonical_level": old.canonical_level}
        module.roi_heads.box_roi_pool = kind(old.featmap_names, old.output_size, old.sampling_ratio, **scales)

    return change


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(module: Any) -> None:
        for one in changes:
            one(module)

    return change


class RowsInBfloat16(RowsAnywhere):
    """Rows in bfloat16."""

    dtype = torch.bfloat16


@contextmanager
def tried_out() -> Iterator[None]:
    """Within, cuDNN tries its kernels out for each shape and takes the fastest."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


WAYS: tuple[tuple[str, bool | None, Change | None, Callable[[], AbstractContextManager[None]]], ...] = (
    ("as shipped", None, None, nullcontext),
    ("as shipped, graph", None, graphed, nullcontext),
    ("as shipped, convolutions tried out", None, None, tried_out),
    ("as shipped, constant pads", None, constant_pads, nullcontext),
    ("as shipped, graph, constant pads", None, both(constant_pads, graphed), nullcontext),
    ("as shipped, RoIAlign by rows", None, pooled_by(RowsAnywhere), nullcontext),
    ("as shipped, graph, RoIAlign by rows", None, both(graphed, pooled_by(RowsAnywhere)), nullcontext),
    ("as shipped, planes", None, contiguous, nullcontext),
    ("float32 in TF32", False, None, lambda: tf32(True)),
    ("float32 in TF32, graph", False, graphed, lambda: tf32(True)),
    ("float32 in full", False, None, lambda: tf32(False)),
)


def rows(subject: Subject) -> Iterator[dict[str, object]]:
    """Each way on batches of tiles; then the classifier's."""
    every = tiles(subject, max(_batches(subject)))
    for name, half, change, context in subject.in_time(WAYS):
        if change is not None and "graph" in name and not subject.is_gpu:
            continue
        with context():
            yield from _tried(name, subject, (half, change), every)
    yield from _classifiers(subject)


@torch.inference_mode()
def _tried(
    name: str, subject: Subject, way: tuple[bool | None, Change | None], every: list[Tensor]
) -> Iterator[dict[str, object]]:
    model = subject.ready(*way)
    for n in _batches(subject):
        row: dict[str, object] = {"way": name, "tiles": n}
        try:
            outputs = model.module(every[:n])
            outputs = model.module(every[:n])
            seconds = subject.seconds(lambda n=n: model.module(every[:n]), 0.15)  # type: ignore[misc]
            cells = sum(int((o["scores"] >= COUNTED_SCORE).sum()) for o in outputs)
            row |= {"ms a tile": 1e3 * seconds / n, "cells": cells, "failure": ""}
        except Exception as error:  # each way that a machine lacks has its own
            row |= {"ms a tile": 0.0, "cells": 0, "failure": f"{type(error).__name__}: {error}".splitlines()[0][:150]}
        yield row


def _batches(subject: Subject) -> tuple[int, ...]:
    return BATCHES if subject.is_gpu else ON_CPU


def tiles(subject: Subject, n: int) -> list[Tensor]:
    """Tiles of one size of rendered fields, float32 (3,H,W) on the device."""
    factor = UM_PER_PX / subject.detector.card.um_per_px
    cut: list[Tensor] = []
    for pixels in subject.many("large", n):
        scaled = looking.rescale(pixels, factor)
        for tile in looking.grid(scaled.shape, subject.detector, TileSettings())[:1]:
            cut.append(looking._to_tensor(looking._cut(scaled, tile), subject.device))
    return cut[:n]


@torch.inference_mode()
def _classifiers(subject: Subject) -> Iterator[dict[str, object]]:
    side = subject.classifier.card.input_px
    module = subject.classifier.module
    for n in (64, 512) if subject.is_gpu else (8,):
        crops = torch.randn(n, 3, side, side, device=subject.device).contiguous(memory_format=torch.channels_last)
        for half in (False, True):

            def work(crops: Tensor = crops, half: bool = half) -> Tensor:
                with torch.autocast(subject.device.type, torch.bfloat16, enabled=half):
                    return module(crops)  # type: ignore[no-any-return]

            seconds = subject.seconds(work, 0.1)
            yield {"classifier": "bfloat16" if half else "float32", "crops": n, "ms a crop": 1e3 * seconds / n}


@torch.inference_mode()
def compiled(subject: Subject) -> Iterator[dict[str, object]]:
    """Backbone and pyramid by torch.compile: how long it takes, and what a tile takes then."""
    every = tiles(subject, max(_batches(subject)))
    model: Any = subject.ready()
    model.module.backbone = torch.compile(model.module.backbone, dynamic=False)
    for n in subject.in_time(reversed(_batches(subject))):
        began = time.perf_counter()
        model.module(every[:n])
        subject.synchronize()
        first = time.perf_counter() - began
        seconds = subject.seconds(lambda n=n: model.module(every[:n]), 0.3)  # type: ignore[misc]
        yield {"compiled": "backbone, pyramid", "tiles": n, "first s": first, "ms a tile": 1e3 * seconds / n}


def largest_difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Mean and largest difference of two pictures uint8."""
    apart = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return float(apart.mean()), float(apart.max())
