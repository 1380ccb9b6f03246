"""The systems of the three papers in one document: what is not measured yet is trained and measured, the rest is kept.

Every run is a folder below `--runs`; stopped at any time, the same command carries on. Seeds come one after another, so
that whole comparisons are there first. What is there is written into `docs/papers.md`, between the marks that name a
table, and beside it as pictures.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import parser
from benchmarks.model_costs import costs_of
from benchmarks.paper_document import write_document
from benchmarks.paper_variants import CONFIGS, VARIANTS, Variant
from wbc.models import builders, registry
from wbc.training.checkpoint import CHECKPOINT
from wbc.training.classifier import train_as_planned
from wbc.training.classifier_data import read_crops
from wbc.training.measure import classifier_confusion

FIGURES, COST = "figures.json", "cost.json"
DOCUMENT = Path(__file__).parents[1] / "docs/papers.md"


@dataclass(frozen=True, slots=True)
class Trials:
    """What is run: every variant by `seeds` on `data`, kept in `folder`."""

    folder: Path
    data: Path
    seeds: Sequence[int]
    device: str

    def missing(self, chosen: Sequence[Variant]) -> Iterator[tuple[Variant, int]]:
        """Runs without figures, a whole seed before the next one."""
        for place, seed in enumerate(self.seeds):
            due = (v for v in chosen if place < v.seeds)
            yield from ((v, seed) for v in due if not (self.place(v, seed) / FIGURES).exists())

    def place(self, variant: Variant, seed: int) -> Path:
        """The folder of a run."""
        return self.folder / f"{variant.name}-seed-{seed}"

    def run(self, variant: Variant, seed: int) -> None:
        """Train by one seed, or carry on, and measure what came of it."""
        plan, out = variant.plan(seed), self.place(variant, seed)
        if not (out / registry.CARD).exists():
            config = CONFIGS / f"{variant.config}.toml"
            train_as_planned(replace(plan, measure=(), watch=()), config, self.data, out, self.device, processes=1)
        sets = {
            spec.set: classifier_confusion(read_crops(spec, self.data), str(out), self.device).tolist()
            for spec in (*plan.watch, *plan.measure)
        }
        conditions = {
            "steps": plan.loop.steps,
            "batch": plan.loop.batch,
            "input_px": plan.crop.input_px,
            "imagenet": plan.imagenet,
            "device": device_name(self.device),
        }
        (out / FIGURES).write_text(json.dumps({"classes": plan.classes, "sets": sets, **conditions}))
        (out / CHECKPOINT).unlink(missing_ok=True)


def device_name(device: str) -> str:
    """What a training ran on, as a row of the document tells it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def costs(variant: Variant, folder: Path) -> None:
    """Keep what a cell costs this variant, measured once, in a process of its own."""
    kept = folder / f"{variant.cost_name}-{COST}"
    if not kept.exists():
        command = [sys.executable, "-m", "benchmarks.papers", "--cost", variant.name]
        kept.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_costs(variant: Variant, rounds: int = 9) -> dict[str, Any]:
    """Costs of one cell in this process, with drawn weights."""
    plan = variant.plan(0)
    model = builders.build(plan.card(CONFIGS / f"{variant.config}.toml"))
    return costs_of(model, torch.rand(1, 3, plan.crop.input_px, plan.crop.input_px), "cell", rounds)


def chosen_of(only: Sequence[str]) -> list[Variant]:
    """The variants of these names or tables; all of them where none is named. Raises ValueError where there is none."""
    chosen = [v for v in VARIANTS if not only or v.name in only or v.table in only]
    if not chosen:
        raise ValueError(f"no variant is called {' or '.join(only)}: they are {', '.join(v.name for v in VARIANTS)}")
    return chosen


def main() -> None:
    """Train and measure what is missing, then write the document."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, help="folder of data sets; without it nothing is trained")
    command.add_argument("--runs", type=Path, default=Path("runs/papers"), help="where runs and costs are kept")
    command.add_argument("--detectors", type=Path, help="the --runs of benchmarks.paper_detectors; default: --runs")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--only", nargs="+", default=[], help="variants of these names, or of these tables")
    command.add_argument("--document", type=Path, default=DOCUMENT)
    command.add_argument("--as-is", action="store_true", help="train nothing: write and draw what is there")
    command.add_argument("--device", default="auto")
    command.add_argument("--cost", help="print one variant's costs as JSON, measured in this process")
    asked = command.parse_args()
    if asked.cost:
        print(json.dumps(measure_costs(chosen_of([asked.cost])[0])))
        return
    chosen = chosen_of(asked.only)
    if asked.data and not asked.as_is:
        asked.runs.mkdir(parents=True, exist_ok=True)
        trials = Trials(asked.runs, asked.data, asked.seeds, registry.resolve_device(asked.device))
        for variant, seed in trials.missing(chosen):
            print(f"{variant.name}, seed {seed}", file=sys.stderr, flush=True)
            trials.run(variant, seed)
        for variant in chosen:
            costs(variant, asked.runs)
    write_document(asked.document, asked.runs, asked.detectors or asked.runs, asked.data)


if __name__ == "__main__":
    main()
