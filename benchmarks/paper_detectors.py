"""The detectors of Wang 2021, side by side: what each costs, and its AP by seed after equal steps.

Every system is a config in `configs/papers`, every run a folder: stopped at any time, the same command carries on from
the last checkpoint. Figures and costs go into the tables of `--record`, and what these hold is not measured again.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Report, Row, labelled_slide, parser, pixels_of, show
from benchmarks.model_costs import costs_of
from benchmarks.paper_pictures import watched
from benchmarks.paper_record import RECORD, Record
from wbc.cells.detect import detect
from wbc.configs import read_toml
from wbc.evaluation.boxes import FoundSet, score_boxes
from wbc.models import builders, registry
from wbc.training.detector import DetectorConfig, train_as_planned
from wbc.training.progress import CURVES

CONFIGS = Path(__file__).parents[1] / "configs/papers"
FIELD = (600, 800)  # px of a field's height and width at the detector's scale
PROPOSALS, BOXES = 1_000, 200  # of a field, whatever the weights say: so that costs are of the architectures
PAPER_AP = {"one_level": 0.715, "fpn": 0.678, "proposed": 0.744}  # its Table 1
MEASURED_ON = ("slide-05", "slide-08")  # test slides: measured at the end of a training, never tuned on
BESIDE_AP = ("AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100", "AR_1000")
LOWEST_SCORE = 0.05


@dataclass(frozen=True, slots=True)
class Trials:
    """What is run: every config in `seeds`, for `steps` (None: the config's own), on `data`; kept in `folder`, its
    figures in `record`.
    """

    folder: Path
    data: Path
    seeds: Sequence[int]
    steps: int | None
    device: str
    record: Record

    def run(self, config: Path, seed: int) -> dict[str, Any]:
        """A training's line of the record, COCO's figures in it: trained, or carried on, where it is not there."""
        plan = read_toml(config, DetectorConfig)
        loop = replace(plan.loop, seed=seed, steps=self.steps or plan.loop.steps)
        which = {"system": config.stem, "steps": loop.steps, "seed": seed}
        for line in self.record.detectors.rows():
            if which.items() <= line.items():
                return line
        out = self.folder / f"{config.stem}-{loop.steps}-steps-seed-{seed}"
        if not (out / registry.CARD).exists():
            train_as_planned(replace(plan, loop=loop, measure=()), config, self.data, out, self.device)
        line = which | figures_of(out, self.data, self.device)
        self.record.watched.add([which | figure for figure in watched(out / CURVES)])
        self.record.detectors.add([line])
        return line


def figures_of(run: Path, data: Path, device: str) -> dict[str, float]:
    """COCO's figures of a trained detector on the test slides, each named by its slide."""
    model, figures = registry.load(registry.resolve(str(run), "detector")[0], device), {}
    for name in MEASURED_ON:
        pictures, um_per_px = labelled_slide(data, name)
        fields = pixels_of(pictures)
        found = tuple(d for pixels in fields for d in detect([pixels], model, um_per_px, LOWEST_SCORE))
        truth = tuple((p, pixels.shape[1], pixels.shape[0]) for p, pixels in zip(pictures, fields, strict=True))
        scores, _ = score_boxes(FoundSet(name, model.card.classes, truth, found))
        figures |= {f"{name} {figure}": scores[figure] for figure in ("AP", *BESIDE_AP)}
    return figures


def costs(config: Path, record: Record) -> dict[str, Any]:
    """Parameters, GFLOPs, ms and peak memory of a system, measured once, in a process of its own."""
    if not record.costs_of(config.stem):
        print(f"costs of {config.stem}", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.paper_detectors", "--cost", str(config)]
        record.costs.add([json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)])
    return record.costs_of(config.stem)


def measure_costs(config: Path, rounds: int = 5) -> dict[str, Any]:
    """Costs of a field 800×600 in this process, with drawn weights and as many proposals and boxes for every system."""
    torch.manual_seed(0)
    plan = read_toml(config, DetectorConfig)
    model = builders.build(replace(plan.card(config, 0.2), arguments=_bounded(plan.model)))
    return {"system": config.stem, **costs_of(model, [torch.rand(3, *FIELD)], "field", rounds)}


def _bounded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A builder's arguments with a fixed number of proposals and boxes, all of which are looked at again."""
    fixed = {
        "lowest_objectness": 0.0,
        "most_proposals": PROPOSALS,
        "lowest_score": 0.0,
        "refined_score": 0.0,
        "most_detections": BOXES,
    }
    if "detector" in arguments:
        return {**arguments, "detector": {**arguments["detector"], **fixed}}
    return {**arguments, **fixed}


def accuracy_row(config: Path, runs: Sequence[Mapping[str, float]], name: str) -> Row:
    """A system's figures on one slide: AP of each seed's run and its mean, and the means of the others."""
    each = [run[f"{name} AP"] for run in runs]
    row = {"system": config.stem, "AP": statistics.mean(each), "AP by seed": ", ".join(f"{ap:.3f}" for ap in each)}
    row |= {figure: statistics.mean(run[f"{name} {figure}"] for run in runs) for figure in BESIDE_AP}
    return row | {"paper's AP": PAPER_AP.get(config.stem.split("_", 2)[2], "")}


def configs(only: Sequence[str]) -> list[Path]:
    """The systems' configs whose names hold one of `only`. Raises ValueError where there is none."""
    chosen = [c for c in sorted(CONFIGS.glob("wang2021_*.toml")) if any(part in c.stem for part in only)]
    if not chosen:
        raise ValueError(f"no config in {CONFIGS} is called like {' or '.join(only)}")
    return chosen


def compare(chosen: Sequence[Path], trials: Trials | None, record: Record) -> Report:
    """Costs of the chosen systems, and with `trials` their accuracy."""
    tables: dict[str, Sequence[Row]] = {
        f"Costs of a field 800×600, {PROPOSALS} proposals, {BOXES} boxes": [costs(c, record) for c in chosen]
    }
    if trials is not None:
        runs = {c: [trials.run(c, seed) for seed in trials.seeds] for c in chosen}
        for name in MEASURED_ON:
            steps = trials.steps or "its config's"
            caption = f"{name} (test) after {steps} steps, seeds {', '.join(map(str, trials.seeds))}"
            tables[caption] = [accuracy_row(c, runs[c], name) for c in chosen]
    remarks = [
        "GFLOPs are torch's count, a multiplication and an addition two; ms are of this machine with whatever else it "
        "does, and of as many threads as the row says.",
        "Paper: Wang 2021, Table 1, on its own bone marrow pictures, which nobody else has.",
    ]
    return Report("Detectors of Wang 2021", [], tables, remarks)


def main() -> None:
    """Measure what is asked for and not there yet, and print all of it."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, help="folder of data sets; without it costs alone are measured")
    command.add_argument("--runs", type=Path, default=Path("runs/papers"), help="where runs are kept")
    command.add_argument("--record", type=Path, default=RECORD, help="where figures and costs are kept")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    command.add_argument("--steps", type=int, help="of each training; default: the config's")
    command.add_argument("--only", nargs="+", default=["lite0"], help="configs whose name holds one of these")
    command.add_argument("--device", default="auto")
    command.add_argument("--cost", type=Path, help="print one config's costs as JSON, measured in this process")
    chosen = command.parse_args()
    if chosen.cost:
        print(json.dumps(measure_costs(chosen.cost)))
        return
    device, record = registry.resolve_device(chosen.device), Record(chosen.record)
    trials = Trials(chosen.runs, chosen.data, chosen.seeds, chosen.steps, device, record) if chosen.data else None
    show(compare(configs(chosen.only), trials, record), as_json=chosen.json)


if __name__ == "__main__":
    main()
