"""The systems of the three papers in one document: what is not measured yet is trained and measured, the rest is kept.

Every run is a folder below `--runs`; stopped at any time, the same command carries on. Seeds come one after another, so
that whole comparisons are there first. Figures go into the tables of `--record`, and what these hold is not measured
again, with its run or without. They are written into `docs/papers.md`, between the marks that name a table, and
pictures beside it, of the runs that are there.
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
from benchmarks.paper_document import FIGURES, figures_row, write_document
from benchmarks.paper_record import RECORD, Record
from benchmarks.paper_variants import CONFIGS, VARIANTS, Variant
from wbc.models import builders, registry
from wbc.training.checkpoint import CHECKPOINT
from wbc.training.classifier import train_as_planned
from wbc.training.classifier_data import read_crops
from wbc.training.measure import classifier_confusion

DOCUMENT = Path(__file__).parents[1] / "docs/papers.md"


@dataclass(frozen=True, slots=True)
class Trials:
    """What is run: every variant by `seeds` on `data`, kept in `folder`, its figures in `record`."""

    folder: Path
    data: Path
    seeds: Sequence[int]
    device: str
    record: Record

    def missing(self, chosen: Sequence[Variant]) -> Iterator[tuple[Variant, int]]:
        """Runs without figures, a whole seed before the next one."""
        there = {(row["variant"], row["seed"]) for row in self.record.classifiers.rows()}
        for place, seed in enumerate(self.seeds):
            yield from ((v, seed) for v in chosen if place < v.seeds and (v.name, seed) not in there)

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
        kept = {"classes": plan.classes, "sets": sets, **conditions}
        (out / FIGURES).write_text(json.dumps(kept))
        self.record.classifiers.add([figures_row(variant, seed, kept)])
        (out / CHECKPOINT).unlink(missing_ok=True)


def device_name(device: str) -> str:
    """What a training ran on, as a row of the document tells it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"


def costs(variant: Variant, record: Record) -> None:
    """Keep what a cell costs this variant, measured once, in a process of its own."""
    if not record.costs_of(variant.cost_name):
        command = [sys.executable, "-m", "benchmarks.papers", "--cost", variant.name]
        told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        record.costs.add([{"system": variant.cost_name, **told}])


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
    command.add_argument("--runs", type=Path, default=Path("runs/papers"), help="where runs are kept")
    command.add_argument("--record", type=Path, default=RECORD, help="where figures and costs are kept")
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
    chosen, record = chosen_of(asked.only), Record(asked.record)
    if asked.data and not asked.as_is:
        asked.runs.mkdir(parents=True, exist_ok=True)
        trials = Trials(asked.runs, asked.data, asked.seeds, registry.resolve_device(asked.device), record)
        for variant, seed in trials.missing(chosen):
            print(f"{variant.name}, seed {seed}", file=sys.stderr, flush=True)
            trials.run(variant, seed)
        for variant in chosen:
            costs(variant, record)
    write_document(asked.document, record, asked.runs, asked.detectors or asked.runs, asked.data)


if __name__ == "__main__":
    main()
