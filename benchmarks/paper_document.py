"""`docs/papers.md` from the runs that are there: tables between marks, and pictures beside it."""

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import paper_detectors
from benchmarks.common import Row, markdown
from benchmarks.paper_pictures import draw_confusion, draw_detectors, draw_hues, draw_losses, watched
from benchmarks.paper_variants import VARIANTS, Variant
from wbc.training.metrics import kind_accuracy

NEIGHBOURS = ("promyelocyte", "myelocyte", "metamyelocyte", "band_neutrophil", "segmented_neutrophil")
SETS = {"lite0": "pbc_cells", "scratch": "pbc_cells", "long": "pbc_cells", "varra": "blood_cells", "bccd": "bccd"}
SHOWN = ("varra_model_1", "varra_model_2", "varra_model_3", "varra_transfer", "plain", "gmmce", "no_hue")
FIGURES = "figures.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """A run's confusion matrices by set, the classes of both their sides, and the conditions of its training."""

    classes: Sequence[str]
    sets: Mapping[str, NDArray[np.int64]]
    conditions: str
    device: str

    @classmethod
    def of(cls, path: Path) -> "Measured":
        """A run as `benchmarks.papers` keeps it."""
        kept = json.loads(path.read_text())
        start = "ImageNet" if kept["imagenet"] else "scratch"
        conditions = f"{kept['input_px']} px, {kept['steps']} × {kept['batch']}, from {start}"
        return cls(kept["classes"], {name: np.array(m) for name, m in kept["sets"].items()}, conditions, kept["device"])

    def accuracy(self, name: str) -> float | None:
        """Percent of a set's cells that have their right name; None where it was not measured."""
        return 100 * kind_accuracy(self.sets[name])["accuracy"] if name in self.sets else None

    def neighbours(self, name: str) -> float | None:
        """Mean recall of the neighbouring maturity stages, percent; None where they are not among the classes."""
        if name not in self.sets or not set(NEIGHBOURS) <= set(self.classes):
            return None
        matrix, rows = self.sets[name], [self.classes.index(kind) for kind in NEIGHBOURS]
        return float(np.mean([100 * matrix[row, row] / matrix[row].sum() for row in rows]))


def write_document(document: Path, runs: Path, detectors: Path, data: Path | None) -> None:
    """Fill every marked table of `document`, and draw the pictures beside it."""
    measured = {v.name: [Measured.of(p) for p in sorted(runs.glob(f"{v.name}-seed-*/{FIGURES}"))] for v in VARIANTS}
    tables = {name: table(name, measured, runs) for name in SETS}
    tables["detectors while they learn"] = learning_table(detectors)
    tables |= {f"detectors on {name}": detector_table(detectors, name) for name in paper_detectors.MEASURED_ON}
    tables["detectors' costs"] = [json.loads(p.read_text()) for p in sorted(detectors.glob("wang2021_*-cost.json"))]
    text = document.read_text()
    for name, rows in tables.items():
        text = filled(text, name, markdown(rows) if rows else "Nothing measured yet.")
    pictures = document.parent / "pictures/papers"
    _draw(pictures, measured, runs, detectors, data)
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


def table(name: str, measured: Mapping[str, Sequence[Measured]], runs: Path) -> list[Row]:
    """The rows of one table, those without a run left out."""
    return [row(v, measured, runs) for v in VARIANTS if v.table == name and measured[v.name]]


def row(variant: Variant, measured: Mapping[str, Sequence[Measured]], runs: Path) -> Row:
    """What all seeds of a variant have shown, beside the paper's figure."""
    own, test = measured[variant.name], f"{SETS[variant.table]} test"
    cells = {
        "row": variant.label,
        "test %": _spread([m.accuracy(test) for m in own]),
        "val %": _spread([m.accuracy(f"{SETS[variant.table]} val") for m in own]),
        "neighbours %": _spread([m.neighbours(test) for m in own]),
        "other stain %": _spread([m.accuracy("tecom_wbc") for m in own]),
        "seeds": len(own),
        "paper %": "" if variant.paper is None else f"{variant.paper:.2f}",
        "against": verdict(variant, measured, test),
        "conditions": ", ".join([own[0].conditions, *sorted({m.device for m in own})]),
    }
    empty = {"val %", "neighbours %", "other stain %"} - _columns(variant.table)
    return {key: value for key, value in cells.items() if key not in empty} | _costs(variant, runs)


def _columns(table: str) -> set[str]:
    return {"varra": set(), "bccd": {"val %", "other stain %"}}.get(table, {"val %", "neighbours %"})


def _costs(variant: Variant, runs: Path) -> Row:
    kept = runs / f"{variant.cost_name}-cost.json"
    keys = ("M parameters", "GFLOPs", "ms a cell", "peak MB")
    costs = json.loads(kept.read_text()) if kept.exists() else {}
    return {key: f"{costs[key]:.3g}" if key in costs else "" for key in keys}


def _spread(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    mean = f"{statistics.mean(there):.1f}"
    return mean if len(there) == 1 else f"{mean} ({min(there):.1f} to {max(there):.1f})"


def verdict(variant: Variant, measured: Mapping[str, Sequence[Measured]], test: str) -> str:
    """How far a row is from the one it is compared with, what the paper says of both, and whether that agrees.

    Beyond the spread means: the worst seed of the one is better than the best of the other. One seed has no spread.
    """
    others = measured.get(variant.against, [])
    if not others:
        return ""
    own, theirs = (np.array([m.accuracy(test) for m in runs]) for runs in (measured[variant.name], others))
    base = next(v for v in VARIANTS if v.name == variant.against)
    gain = own.mean() - theirs.mean()
    told = f"{gain:+.1f} to {base.label}"
    if variant.paper is not None and base.paper is not None:
        expected = variant.paper - base.paper
        told += f" (paper {expected:+.1f}: {'agrees' if gain * expected > 0 else 'does not agree'})"
    if min(len(own), len(theirs)) < 2:
        return f"{told}; one seed, no spread"
    beyond = own.min() > theirs.max() or own.max() < theirs.min()
    return f"{told}; {'beyond' if beyond else 'within'} the spread"


def detector_table(folder: Path, slide: str) -> list[Row]:
    """The rows of the detectors that have been trained, by `paper_detectors`' own reckoning."""
    rows = []
    for config in paper_detectors.configs(["wang2021"]):
        kept = sorted(folder.glob(f"{config.stem}-*-steps-seed-*/{FIGURES}"))
        if kept:
            steps = _steps(kept[0], config.stem)
            figures = [json.loads(path.read_text()) for path in kept]
            rows.append({**paper_detectors.accuracy_row(config, figures, slide), "steps": steps, "seeds": len(kept)})
    return rows


def _steps(file: Path, stem: str) -> int:
    """How many steps the run of a config has, by its folder's name."""
    return int(file.parent.name.removeprefix(f"{stem}-").split("-")[0])


def learning_table(folder: Path) -> list[Row]:
    """AP on the slides that detectors watch in their longest trainings, step by step, a figure for each seed."""
    figures: dict[str, list[dict[tuple[str, int], float]]] = {}
    for config in paper_detectors.configs(["wang2021"]):
        runs = sorted(folder.glob(f"{config.stem}-*-steps-seed-*/curves.csv"))
        longest = max((_steps(run, config.stem) for run in runs), default=0)
        figures[config.stem] = [watched(run) for run in runs if _steps(run, config.stem) == longest]
    columns = sorted({key for runs in figures.values() for run in runs for key in run if key[0].endswith(" AP")})
    return [
        {
            "system": system,
            **{
                f"{curve}, {step} steps": ", ".join(f"{run[curve, step]:.3f}" for run in runs if (curve, step) in run)
                for curve, step in columns
            },
        }
        for system, runs in figures.items()
        if any(runs)
    ]


def _draw(
    folder: Path, measured: Mapping[str, Sequence[Measured]], runs: Path, detectors: Path, data: Path | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        test = f"{SETS[variant.table]} test"
        if measured[variant.name] and variant.name in SHOWN:
            first = measured[variant.name][0]
            draw_confusion(first.sets[test], first.classes, variant.label, folder / f"{variant.name}.png")
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
