"""Whether retraining helps: a detector of a quarter of `bccd` train learns on from what is added to annotation stores.

Each case is added to a store of its own, trained from the same start with the quarter replayed, and put before the
gate on the test parts of `bccd` and `pbc`, and on `bccd` alone. What was trained already is not trained again.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from upath import UPath

from benchmarks.common import Claim, Report, Row, parser, show
from wbc.datasets.annotation_store import AnnotationStore
from wbc.datasets.labels import LabelledPicture
from wbc.datasets.voc import read_voc
from wbc.datasets.yolo import read_yolo
from wbc.evaluation.frozen import read_frozen
from wbc.evaluation.gate import Decision, judge
from wbc.training.detector import train_detector

NAMES = {"RBC": "rbc", "WBC": "wbc", "Platelets": "platelet"}
CONFIG = """
classes = ["rbc", "platelet", "wbc"]
builder = "faster_rcnn"
um_per_px = 0.2
start = "{start}"
frozen = ["conv_stem", "bn1", "blocks.0."]
[model]
[loop]
steps = {steps}
batch = 2
rate = {rate}
warm_up = {warm_up}
average = 0.97
data_workers = 0
[mosaic]
size_px = 384
[jitter]
[calibrate]
pictures = 30
[[data]]
format = "voc"
images = "bccd/images"
annotations = "bccd/voc"
split = ["{quarter}"]
names = {{ RBC = "rbc", WBC = "wbc", Platelets = "platelet" }}
weight = 0.35
"""
STORE = '[[data]]\nformat = "store"\nstore = "{store}"\nweight = 0.65\n'
BCCD = """[[measure]]
set = "bccd test"
format = "voc"
images = "bccd/images"
annotations = "bccd/voc"
split = ["bccd/splits/test.txt"]
names = { RBC = "rbc", WBC = "wbc", Platelets = "platelet" }
"""
PBC = """[[measure]]
set = "pbc test"
format = "yolo"
images = "pbc/images"
annotations = "pbc/yolo"
split = ["@"]
names = { "0" = "wbc", "1" = "rbc", "2" = "platelet" }
"""


def split_quarter(data: Path, out: Path) -> list[str]:
    """Write the stems of a random quarter of BCCD's training pictures to OUT; the stems of the others."""
    stems = sorted(set((data / "bccd/splits/train.txt").read_text().split()))
    quarter = set(random.Random(14).sample(stems, len(stems) // 4))
    (out / "quarter.txt").write_text("\n".join(sorted(quarter)))
    return [stem for stem in stems if stem not in quarter]


def cases(data: Path, rest: Sequence[str]) -> Mapping[str, Callable[[], list[LabelledPicture]]]:
    """What is added in each case."""

    def others() -> list[LabelledPicture]:
        return read_voc(data / "bccd/images", data / "bccd/voc", NAMES, list(rest))

    def poisoned() -> list[LabelledPicture]:
        labels = [label for picture in others() for label in picture.labels]
        random.Random(14).shuffle(labels)
        left = iter(labels)
        return [replace(p, labels=tuple(next(left) for _ in p.labels)) for p in others()]

    def scanner() -> list[LabelledPicture]:
        table = pd.read_csv(data / "pbc/central_cell.csv")
        stems = list(table["image"][table["split"] == "train"])
        return read_yolo(data / "pbc/images", data / "pbc/yolo", ["wbc", "rbc", "platelet"], stems)

    return {"rest": others, "poisoned": poisoned, "scanner": scanner, "nothing": list}


def trained(name: str, added: Sequence[LabelledPicture], data: Path, out: Path, steps: int) -> str:
    """The folder of a detector that has learnt on from the start with what was added, if anything was."""
    text = CONFIG.format(start=out / "start", steps=steps, rate="3e-4", warm_up=15, quarter=out / "quarter.txt")
    if added:
        store = AnnotationStore(UPath(out / f"store-{name}"))
        if not store.shards():
            store.add(added, by="benchmark", source=name)
        text += STORE.format(store=store.path)
    (out / f"{name}.toml").write_text(text)
    train_detector(out / f"{name}.toml", data, out / name, "cpu")
    return str(out / name)


def measured(data: Path, out: Path, steps: int) -> Report:
    """Train and judge all cases."""
    out.mkdir(parents=True, exist_ok=True)
    rest = split_quarter(data, out)
    start = CONFIG.format(start="", steps=220, rate="4e-4", warm_up=30, quarter=out / "quarter.txt")
    (out / "start.toml").write_text(start)
    train_detector(out / "start.toml", data, out / "start", "cpu")
    table = pd.read_csv(data / "pbc/central_cell.csv")
    (out / "pbc_test.txt").write_text("\n".join(table["image"][table["split"] == "test"].astype(str)))
    (out / "bccd.toml").write_text(BCCD)
    (out / "both.toml").write_text(BCCD + PBC.replace("@", str(out / "pbc_test.txt")))
    rows: list[Row] = []
    for name, added in cases(data, rest).items():
        model = trained(name, added(), data, out, steps)
        for sets in ("bccd", "both"):
            frozen = read_frozen(out / f"{sets}.toml", data)
            rows.append({"added": name, "judged on": sets, **_row(judge(str(out / "start"), model, frozen, "cpu"))})
    by_case = {(row["added"], row["judged on"]): row for row in rows}
    promoted = [float(by_case[case]["promoted"] == "yes") for case in (("rest", "bccd"), ("poisoned", "both"))]
    claims = [
        Claim("the rest is promoted", promoted[0], at_least=1),
        Claim("a poisoned batch is promoted", promoted[1], at_most=0),
    ]
    return Report(f"Retraining: {steps} steps from a quarter", claims, {"cases": rows})


def _row(decision: Decision) -> Row:
    gain = f"{decision.gain:+.4f} ({decision.gain_low:+.4f} to {decision.gain_high:+.4f})"
    return {"AP50": gain, "promoted": "yes" if decision.promoted else "no", "why not": "; ".join(decision.reasons)}


def main() -> None:
    """Measure and print."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True, help="where stores and models are kept")
    options.add_argument("--steps", type=int, default=160)
    given = options.parse_args()
    show(measured(given.data.absolute(), given.out.absolute(), given.steps), as_json=given.json)


if __name__ == "__main__":
    main()
