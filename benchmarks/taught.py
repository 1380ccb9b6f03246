"""What a laboratory gains that names a few of its cells: right names before and after, on the cells that have no name.

The classifier must not have seen the laboratory: the bundled one has seen Chula. A seed draws which cells of each kind
are named; all others are the test, and teach without their names as `wbc adapt` has it: all of them, none (*alone*), or
one half, where the other is the test (*unseen*). The strength of the fit is chosen on the named cells alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from upath import UPath

from benchmarks.common import Claim, Report, Row, cpu_of, parser, show
from wbc.cells.classify import cut_crops
from wbc.models import registry
from wbc.models.cards import ModelCard
from wbc.models.last_layer import with_lower_levels
from wbc.models.registry import LoadedModel
from wbc.storage.images import read_field
from wbc.taxonomy import label_matrix, load_taxonomy
from wbc.training.choice import choose
from wbc.training.last_layer import LastLayer, NamedCells, cross_validate, fit
from wbc.training.taught_layer import named_cells, own_layer

COMMON = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
PER_KIND = (5, 10, 20)
CHULA, TECOM = "chula_wbc", "tecom_wbc"
BAR, BAR_SECONDS, CELLS_TO_TIME = 0.93, 30.0, 500
# By their red cells; tecom_wbc's is assumed from its cells' sizes, see benchmarks/accuracy.py.
CHULA_UM_PER_PX, TECOM_UM_PER_PX = 0.089, 0.18


@dataclass(frozen=True, slots=True, eq=False)
class Laboratory:
    """Cells of one laboratory: crops uint8 (N,S,S,3) and the true kind of each."""

    name: str
    crops: NDArray[np.uint8]
    kinds: tuple[str, ...]


def laboratories(data: Path, names: Sequence[str], card: ModelCard) -> Iterator[Laboratory]:
    """Those of these names below `data`, as a count would show their cells to the classifier."""
    readers = {CHULA: _chula, TECOM: _tecom}
    yield from (readers[name](data, card) for name in names)


def _chula(data: Path, card: ModelCard) -> Laboratory:
    cells, crops = pd.read_csv(data / "chula_wbc" / "cells.csv"), []
    sides = cells[["x0", "y0", "x1", "y1"]].to_numpy(np.float32)
    groups = cells.groupby("field", sort=True).indices
    for name, rows in groups.items():
        pixels = read_field(UPath(data / "chula_wbc" / "fields" / str(name)))
        crops.append(cut_crops(pixels, sides[rows], CHULA_UM_PER_PX, card))
    kinds = cells["kind"].to_numpy()[np.concatenate(list(groups.values()))]
    return Laboratory(CHULA, np.concatenate(crops), tuple(kinds))


def _tecom(data: Path, card: ModelCard) -> Laboratory:
    labels = pd.read_csv(data / "tecom_wbc" / "labels.csv", dtype=str)
    crops = []
    for stem in labels["image"]:
        (path,) = (data / "tecom_wbc" / "images").glob(f"{stem}.*")
        pixels = read_field(UPath(path))
        height, width = pixels.shape[:2]
        crops.append(cut_crops(pixels, np.array([[0, 0, width, height]], np.float32), TECOM_UM_PER_PX, card))
    return Laboratory(TECOM, np.concatenate(crops), tuple(labels["label"]))


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """A laboratory's cells with their true names, the classifier's own last layer, which classes each kind covers."""

    cells: NamedCells
    prior: LastLayer
    five: NDArray[np.float32]

    def right(self, layer: LastLayer, which: NDArray[np.int64]) -> float:
        """The fraction of cells of which the likeliest of the five kinds is the true one."""
        logits = layer.logits(self.cells.features[which])
        odds = np.exp(logits - logits.max(2, keepdims=True))
        chances = (odds / odds.sum(2, keepdims=True)).mean(1) @ self.five.T
        answers = np.array(COMMON, object)[chances.argmax(1)]
        return float((answers == np.array(self.cells.names, object)[which]).mean())

    def others(self, named: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cells that are not among these."""
        return np.setdiff1d(np.arange(len(self.cells.names)), named)

    def layer(self, named: NDArray[np.int64], shown: NDArray[np.int64]) -> LastLayer:
        """The last layer taught by these cells, and by others that are `shown` without their names."""
        some = replace(take(self.cells, named), unnamed=self.cells.features[shown])
        gain = cross_validate(some, self.prior)
        return fit(some, self.prior, gain.strength) if gain.pays else self.prior

    def taught(self, named: NDArray[np.int64]) -> float:
        """Right after these cells are named, of all others, which are shown."""
        others = self.others(named)
        return self.right(self.layer(named, others), others)

    def lesson(self, named: NDArray[np.int64], seed: int) -> dict[str, float]:
        """Right of all others before these cells are named, after, after them alone; of a half that was not shown."""
        others = self.others(named)
        shown, unseen = np.array_split(np.random.default_rng(seed).permutation(others), 2)
        return {
            "before": self.right(self.prior, others),
            "alone": self.right(self.layer(named, others[:0]), others),
            "after": self.taught(named),
            "unseen": self.right(self.layer(named, shown), unseen),
        }


def take(cells: NamedCells, which: NDArray[np.int64]) -> NamedCells:
    """The cells at some indices."""
    return replace(
        cells,
        features=cells.features[which],
        covers=cells.covers[which],
        names=tuple(cells.names[i] for i in which),
    )


def drawn(kinds: Sequence[str], per_kind: int, seed: int) -> NDArray[np.int64]:
    """Indices of `per_kind` cells of each kind, drawn by a seed; at most half of a kind, so that some are left."""
    rng, chosen = np.random.default_rng(seed), []
    for kind in sorted(set(kinds)):
        of_kind = rng.permutation([i for i, other in enumerate(kinds) if other == kind])
        chosen += of_kind[: min(per_kind, len(of_kind) // 2)].tolist()
    return np.array(sorted(chosen), np.int64)


def alike(lab: Bench, n: int, seed: int) -> NDArray[np.int64]:
    """Indices of `n` cells drawn by a seed, of whatever kind."""
    drawn_ones = np.random.default_rng(seed).permutation(len(lab.cells.names))[:n]
    return np.asarray(np.sort(drawn_ones))


def bench(laboratory: Laboratory, model: LoadedModel) -> Bench:
    """The laboratory's cells as the last layer gets them that is taught."""
    taxonomy, fuller = load_taxonomy("blood"), with_lower_levels(model)
    cells = named_cells(laboratory.crops, laboratory.kinds, fuller, taxonomy)
    return Bench(cells, own_layer(fuller), label_matrix(taxonomy, model.card.classes, COMMON))


def rows_of(name: str, lab: Bench, model: LoadedModel, seeds: int) -> list[Row]:
    """For each number of cells a kind: right before and after, over seeds, and where `choose` picks the cells."""
    rows: list[Row] = []
    logits = lab.prior.logits(lab.cells.features).mean(1)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    own = lab.cells.features[..., : lab.cells.widths[0]].mean(1)  # what cells are chosen by
    scores, counted_as = (odds / odds.sum(1, keepdims=True)).max(1), [model.card.classes[i] for i in logits.argmax(1)]
    for per_kind in PER_KIND:
        figures = pd.DataFrame([lab.lesson(drawn(lab.cells.names, per_kind, seed), seed) for seed in range(seeds)])
        chosen = choose(own, counted_as, scores, per_kind)
        rows.append(
            {
                "laboratory": name,
                "cells a kind": per_kind,
                **{what: float(right) for what, right in figures.mean().items()},
                "worst seed": float(figures["after"].min()),
                "chosen cells": len(chosen),
                "after, chosen": lab.taught(chosen),
                "after, as many drawn": float(np.mean([lab.taught(alike(lab, len(chosen), s)) for s in range(seeds)])),
            }
        )
    return rows


def teach_many(laboratory: Laboratory, model: LoadedModel) -> LastLayer:
    """A last layer from CELLS_TO_TIME cells, all the way from their crops."""
    some = Laboratory(laboratory.name, laboratory.crops[:CELLS_TO_TIME], laboratory.kinds[:CELLS_TO_TIME])
    lab = bench(some, model)
    return fit(lab.cells, lab.prior, cross_validate(lab.cells, lab.prior).strength)


def measure(data: Path, names: Sequence[str], classifier: str, seeds: int, device: str) -> Report:
    """The laboratories of these names, and the time where one has cells enough to tell."""
    ref, card = registry.resolve(classifier, "classifier")
    model = registry.load(ref, device)
    rows: list[Row] = []
    timed: list[Claim] = []
    for laboratory in laboratories(data, names, card):
        rows += rows_of(laboratory.name, bench(laboratory, model), model, seeds)
        if len(laboratory.kinds) >= CELLS_TO_TIME:
            _, seconds = cpu_of(partial(teach_many, laboratory, model))
            timed = [Claim(f"teaching {CELLS_TO_TIME} cells, CPU-seconds", seconds, "s", at_most=BAR_SECONDS)]
    mean = {n: float(np.mean([row["after"] for row in rows if row["cells a kind"] == n])) for n in PER_KIND}
    claims = [
        Claim("right of five kinds, 10 cells a kind named, mean over laboratories", mean[10], at_least=BAR),
        *(Claim(f"the same, {n} cells a kind", mean[n]) for n in PER_KIND if n != 10),
        *timed,
    ]
    return Report(f"Taught: {classifier}", claims, {f"{seeds} seeds": rows})


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="folder of chula_wbc and tecom_wbc")
    command.add_argument("--classifier", default="bundled:classifier", help="one that has not seen them")
    command.add_argument("--laboratories", nargs="+", choices=[CHULA, TECOM], default=[TECOM])
    command.add_argument("--seeds", type=int, default=5)
    command.add_argument("--device", default="auto")
    chosen = command.parse_args()
    device = registry.resolve_device(chosen.device)
    report = measure(chosen.data, chosen.laboratories, chosen.classifier, chosen.seeds, device)
    show(report, as_json=chosen.json)


if __name__ == "__main__":
    main()
