"""`docs/papers.md` from what is measured: tables between marks, and pictures, of the runs that are there, beside it."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import paper_detectors
from benchmarks.common import Row, markdown
from benchmarks.paper_pictures import draw_confusion, draw_detectors, draw_hues, draw_losses
from benchmarks.paper_record import Record
from benchmarks.paper_variants import VARIANTS, Variant
from wbc.training.metrics import kind_accuracy

NEIGHBOURS = ("promyelocyte", "myelocyte", "metamyelocyte", "band_neutrophil", "segmented_neutrophil")
SETS = {"lite0": "pbc_cells", "scratch": "pbc_cells", "long": "pbc_cells", "varra": "blood_cells", "bccd": "bccd"}
SHOWN = ("varra_model_1", "varra_model_2", "varra_model_3", "varra_transfer", "plain", "gmmce", "no_hue")
COSTS = ("M parameters", "GFLOPs", "ms a cell", "peak MB")
FIGURES = "figures.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """A training's figures, in percent of cells that have their right name, and its conditions.

    `test` and `val` are of the set that its table is about, `neighbours` is the mean recall of the neighbouring
    maturity stages, `other_stain` of a laboratory that it never saw; each None where it was not measured.
    """

    test: float | None
    val: float | None
    neighbours: float | None
    other_stain: float | None
    conditions: str
    device: str

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Measured":
        """A line of the record."""
        figures = (line.get(name) for name in ("test", "val", "neighbours", "other_stain"))
        return cls(*figures, line["conditions"], line["device"])


def figures_row(variant: Variant, seed: int, kept: Mapping[str, Any]) -> dict[str, Any]:
    """A training's line of the record, from the confusion matrices and conditions that its run keeps."""
    sets, about = {name: np.array(matrix) for name, matrix in kept["sets"].items()}, SETS[variant.table]
    start = "ImageNet" if kept["imagenet"] else "scratch"
    figures = {
        "test": _accuracy(sets.get(f"{about} test")),
        "val": _accuracy(sets.get(f"{about} val")),
        "neighbours": _neighbours(sets.get(f"{about} test"), kept["classes"]),
        "other_stain": _accuracy(sets.get("tecom_wbc")),
    }
    conditions = f"{kept['input_px']} px, {kept['steps']} × {kept['batch']}, from {start}"
    return {"variant": variant.name, "seed": seed, **figures, "conditions": conditions, "device": kept["device"]}


def _accuracy(matrix: NDArray[np.int64] | None) -> float | None:
    return None if matrix is None else round(100 * kind_accuracy(matrix)["accuracy"], 3)


def _neighbours(matrix: NDArray[np.int64] | None, classes: Sequence[str]) -> float | None:
    if matrix is None or not set(NEIGHBOURS) <= set(classes):
        return None
    rows = [classes.index(kind) for kind in NEIGHBOURS]
    return round(float(np.mean([100 * matrix[row, row] / matrix[row].sum() for row in rows])), 3)


def write_document(document: Path, record: Record, runs: Path, detectors: Path, data: Path | None) -> None:
    """Fill every marked table of `document` from `record`, and draw the pictures of what lies in the runs' folders."""
    lines = record.classifiers.rows()
    measured = {v.name: [Measured.of(line) for line in lines if line["variant"] == v.name] for v in VARIANTS}
    tables = {name: table(name, measured, record) for name in SETS}
    tables["detectors while they learn"] = learning_table(record)
    tables |= {f"detectors on {name}": detector_table(record, name) for name in paper_detectors.MEASURED_ON}
    tables["detectors' costs"] = detector_costs(record)
    text = document.read_text()
    for name, rows in tables.items():
        text = filled(text, name, markdown(rows) if rows else "Nothing measured yet.")
    pictures = document.parent / "pictures/papers"
    _draw(pictures, runs, detectors, data)
    document.write_text(filled(text, "pictures", shown(pictures)))


def filled(text: str, name: str, content: str) -> str:
    """The text with `content` between the marks of table `name`. Raises ValueError where it has no such marks."""
    marks = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"the document has no marks for the table {name!r}")
    return marks.sub(lambda found: f"{found[1]}\n{content}\n\n{found[2]}", text)


def shown(pictures: Path) -> str:
    """The pictures that are there, each under what it shows."""
    captions = {
        "losses.png": "Losses of the ablations, first seed",
        "detector-losses.png": "Losses of the detectors, first seed (Wang's Figure 7)",
        "detectors.jpg": "Boxes of the detectors in the middle of a test field (Wang's Figure 8)",
        "hues.jpg": "Cells before and after the hue adjustment (ASAE-Net's Figure 5)",
    }
    captions |= {f"{v.name}.png": f"Confusion, percent of each true kind: {v.label}, first seed" for v in VARIANTS}
    there = [name for name in captions if (pictures / name).exists()]
    return "\n\n".join(f"{captions[name]}:\n\n![{captions[name]}](pictures/papers/{name})" for name in there)


def table(name: str, measured: Mapping[str, Sequence[Measured]], record: Record) -> list[Row]:
    """The rows of one table, those that are not measured left out."""
    return [row(v, measured, record) for v in VARIANTS if v.table == name and measured[v.name]]


def row(variant: Variant, measured: Mapping[str, Sequence[Measured]], record: Record) -> Row:
    """What all seeds of a variant have shown, beside the paper's figure."""
    own = measured[variant.name]
    cells = {
        "row": variant.label,
        "test %": _spread([m.test for m in own]),
        "val %": _spread([m.val for m in own]),
        "neighbours %": _spread([m.neighbours for m in own]),
        "other stain %": _spread([m.other_stain for m in own]),
        "seeds": len(own),
        "paper %": "" if variant.paper is None else f"{variant.paper:.2f}",
        "against": verdict(variant, measured),
        "conditions": ", ".join([own[0].conditions, *sorted({m.device for m in own})]),
    }
    empty = {"val %", "neighbours %", "other stain %"} - _columns(variant.table)
    return {key: value for key, value in cells.items() if key not in empty} | _costs(variant, record)


def _columns(table: str) -> set[str]:
    return {"varra": set(), "bccd": {"val %", "other stain %"}}.get(table, {"val %", "neighbours %"})


def _costs(variant: Variant, record: Record) -> Row:
    costs = record.costs_of(variant.cost_name)
    return {key: f"{costs[key]:.3g}" if key in costs else "" for key in COSTS}


def _spread(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    mean = f"{statistics.mean(there):.1f}"
    return mean if len(there) == 1 else f"{mean} ({min(there):.1f} to {max(there):.1f})"


def verdict(variant: Variant, measured: Mapping[str, Sequence[Measured]]) -> str:
    """How far a row is from the one it is compared with, what the paper says of both, and whether that agrees.

    Beyond the spread means: the worst seed of the one is better than the best of the other. One seed has no spread.
    """
    others = measured.get(variant.against, [])
    if not others:
        return ""
    own, theirs = (np.array([m.test for m in runs]) for runs in (measured[variant.name], others))
    base = next(v for v in VARIANTS if v.name == variant.against)
    gain = own.mean() - theirs.mean()
    told = f"{round(gain, 1) + 0:+.1f} to {base.label}"  # never -0.0
    if variant.paper is not None and base.paper is not None:
        expected = variant.paper - base.paper
        told += f" (paper {expected:+.1f}: {'agrees' if gain * expected > 0 else 'does not agree'})"
    if min(len(own), len(theirs)) < 2:
        return f"{told}; one seed, no spread"
    beyond = own.min() > theirs.max() or own.max() < theirs.min()
    return f"{told}; {'beyond' if beyond else 'within'} the spread"


def detector_table(record: Record, slide: str) -> list[Row]:
    """The rows of the detectors that have been trained, by `paper_detectors`' own reckoning."""
    rows, lines = [], record.detectors.rows()
    for config in paper_detectors.configs(["wang2021"]):
        if own := [line for line in lines if line["system"] == config.stem]:
            steps = min(line["steps"] for line in own)
            runs = [line for line in own if line["steps"] == steps]
            rows.append({**paper_detectors.accuracy_row(config, runs, slide), "steps": steps, "seeds": len(runs)})
    return rows


def detector_costs(record: Record) -> list[Row]:
    """What a field costs each detector."""
    keys = ("system", *(key.replace("cell", "field") for key in COSTS), "threads")
    there = [costs for costs in record.costs.rows() if costs["system"].startswith("wang2021_")]
    return [{key: costs[key] for key in keys} for costs in there]


def learning_table(record: Record) -> list[Row]:
    """AP on the slides that detectors watch in their longest trainings, step by step, a figure for each seed."""
    lines = [line for line in record.watched.rows() if line["figure"].endswith(" AP")]
    longest: dict[str, int] = {}
    for line in lines:
        longest[line["system"]] = max(line["steps"], longest.get(line["system"], 0))
    shown = [line for line in lines if line["steps"] == longest[line["system"]]]
    columns = sorted({(line["figure"], line["step"]) for line in shown})

    def cell(system: str, column: tuple[str, int]) -> str:
        there = [s for s in shown if (s["system"], s["figure"], s["step"]) == (system, *column)]
        return ", ".join(f"{line['value']:.3f}" for line in there)

    return [
        {"system": system, **{f"{figure}, {step} steps": cell(system, (figure, step)) for figure, step in columns}}
        for system in longest
    ]


def _draw(folder: Path, runs: Path, detectors: Path, data: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        kept = sorted(runs.glob(f"{variant.name}-seed-*/{FIGURES}"))
        if kept and variant.name in SHOWN:
            first = json.loads(kept[0].read_text())
            matrix = np.array(first["sets"][f"{SETS[variant.table]} test"])
            draw_confusion(matrix, first["classes"], variant.label, folder / f"{variant.name}.png")
    draw_losses({v.label: _curves(runs, v) for v in VARIANTS if v.table == "lite0"}, folder / "losses.png")
    trained = {c.stem: _curves_of(detectors, c.stem) for c in paper_detectors.configs(["wang2021"])}
    draw_losses(trained, folder / "detector-losses.png")
    if data is not None:
        draw_hues(data, folder / "hues.jpg")
        draw_detectors(data, detectors, folder / "detectors.jpg")


def _curves(runs: Path, variant: Variant) -> list[Path]:
    return sorted(runs.glob(f"{variant.name}-seed-0/curves.csv"))


def _curves_of(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}-*-seed-0/curves.csv"))
