"""Training pictures per second of `wbc.training.loop.fit`, in ratio to a bare loop on the same batches in memory.

Blocks of the two take turns, so that other work of the machine meets both alike. The figures are by CPU-seconds.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import Claim, Report, parser, show
from wbc.datasets.augment import Jitter
from wbc.datasets.mosaic import MosaicSettings
from wbc.models import builders, registry
from wbc.training.detector import detection_losses, freeze_body
from wbc.training.detector_data import Mosaics, RenderedData, render_source
from wbc.training.loop import LARGEST_GRADIENT, Lesson, LoopSettings, fit

Sample = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class InMemory:
    """Samples drawn before the clock starts; sample i is one of them."""

    drawn: Sequence[Sample]

    def __getitem__(self, index: int) -> Sample:
        return self.drawn[index % len(self.drawn)]

    def pictures(self, index: int) -> list[str]:
        return [f"sample {index % len(self.drawn)}"]

    @property
    def digest(self) -> str:
        return "in memory"


def detector() -> nn.Module:
    """The bundled detector as it starts to learn on."""
    card = registry.read_card("bundled:detector")
    torch.manual_seed(0)
    model: Any = builders.build(card).train()
    freeze_body(model, ("conv_stem", "bn1", "blocks.0."))
    return model


def bare(model: nn.Module, samples: InMemory, settings: LoopSettings) -> None:
    """Forward, backward and a step of AdamW, and nothing else."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.rate)
    for step in range(settings.steps):
        batch = [samples[step * settings.batch + i] for i in range(settings.batch)]
        total = torch.stack(list(detection_losses(model, batch).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()


def main() -> None:
    """Measure and print."""
    options = parser(__doc__ or "")
    options.add_argument("--blocks", type=int, default=4)
    options.add_argument("--steps", type=int, default=25, help="of each block")
    options.add_argument("--size", type=int, default=384, help="side of a picture, px")
    given = options.parse_args()
    show(measured(given.blocks, given.steps, given.size), as_json=given.json)


def measured(blocks: int, steps: int, size_px: int) -> Report:
    """Both loops, `blocks` times `steps` steps of two pictures each; a checkpoint ends each block of `fit`."""
    source = render_source(RenderedData(6, 1, 1.0), registry.read_card("bundled:detector").classes)
    mosaics = Mosaics([source], MosaicSettings(size_px=size_px), Jitter(), seed=1)
    samples = InMemory([mosaics[i] for i in range(16)])
    settings = LoopSettings(steps=steps, batch=2, rate=1e-5, warm_up=1, data_workers=0)
    rows = []
    for block in range(blocks + 1):  # the first warms up
        row: dict[str, float] = {"block": block}
        for name in ("bare", "fit"):
            model = detector()
            with TemporaryDirectory() as folder:
                cpu, wall = time.process_time(), time.perf_counter()
                if name == "bare":
                    bare(model, samples, settings)
                else:
                    fit(model, Lesson(samples, list, detection_losses), settings, Path(folder, "c.pt"))
                n = steps * settings.batch
                row |= {f"{name}, pictures a CPU-s": n / (time.process_time() - cpu)}
                row |= {f"{name}, pictures a s": n / (time.perf_counter() - wall)}
        rows.append(row)
    ratio = float(np.median([row["fit, pictures a CPU-s"] / row["bare, pictures a CPU-s"] for row in rows[1:]]))
    claims = [Claim("fit in ratio to a bare loop, by CPU-seconds", ratio, at_least=0.9)]
    return Report(f"Training speed: {size_px} px, 2 pictures a step", claims, {"blocks": rows[1:]})


if __name__ == "__main__":
    main()
