"""Whether limits cover the truth at a laboratory that taught a classifier: by its own cells, and by others'.

A night of normal blood is counted from some of a laboratory's cells; `wbc adapt` chooses which of them are named, and
a last layer is fitted to these. Slides are simulated from all cells that were not named. The classifier must not have
seen the laboratory: the bundled one has seen Chula.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from benchmarks.common import Claim, Report, parser, show
from benchmarks.limits import BAR_COVERAGE, COMMON, Judged, coverage, root_kind, simulated
from benchmarks.limits import Laboratory as Simulation
from benchmarks.taught import CHULA, TECOM, Bench, Laboratory, bench, laboratories, take
from wbc.cells.naming import name_cells
from wbc.counting.correction import confusion_of_cells
from wbc.differential import differential_of
from wbc.misnaming import corrected
from wbc.models import registry
from wbc.models.cards import ModelCard
from wbc.models.reference_cells import ReferenceCells, read_reference_cells
from wbc.storage.detections import Kinds
from wbc.synth.smear import NORMAL_BLOOD
from wbc.taxonomy import Taxonomy, load_taxonomy
from wbc.training.choice import choose
from wbc.training.last_layer import LastLayer, cross_validate, fit
from wbc.training.own_reference import stands_for

CALLED = {CHULA: "Chula", TECOM: "tecom"}  # in the reference cells
COUNTED = 0.6  # of the laboratory's cells, on the night before it teaches
NIGHT = 3000  # cells of normal blood
FEWEST_CELLS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """A laboratory after its lesson: by kind what cells are called that nobody named, and its own reference cells."""

    names: dict[str, NDArray[np.object_]]
    own: ReferenceCells


def teach(lab: Bench, kinds: Sequence[str], card: ModelCard, taxonomy: Taxonomy, per_kind: int, seed: int) -> Taught:
    """One lesson with `per_kind` cells of each type that was counted; a seed says what was counted."""
    rng, true = np.random.default_rng(seed), np.array(kinds, object)
    chances = probabilities(lab, lab.prior)
    counted_as = [card.classes[i] for i in chances.argmax(1)]
    night = np.sort(rng.permutation(len(true))[: int(COUNTED * len(true))])
    seen = lab.cells.features[night][..., : lab.cells.widths[0]].mean(1)
    named = night[choose(seen, [counted_as[i] for i in night], chances[night].max(1), per_kind)]
    cells = replace(take(lab.cells, named), unnamed=lab.cells.features[np.setdiff1d(night, named)])
    gain = cross_validate(cells, lab.prior)
    layer = fit(cells, lab.prior, gain.strength) if gain.pays else lab.prior
    asked = pd.DataFrame({"counted_as": [counted_as[i] for i in named]})
    times = np.round(NIGHT * _normal_blood(true[night], taxonomy)).astype(int)
    there = pd.DataFrame({"cell_type": np.repeat([counted_as[i] for i in night], times)})
    held_out = (gain.chances if gain.pays else gain.chances_before).astype(np.float16)
    own = ReferenceCells(held_out, cells.names, ("own",) * len(named), "own", stands_for(asked, there))
    rest = np.setdiff1d(np.arange(len(true)), named)
    given = name_cells(probabilities(lab, layer)[rest], card.classes, taxonomy, card.threshold).types
    by_kind = {root_kind(kind, taxonomy) or kind: given[true[rest] == kind] for kind in sorted(set(kinds))}
    return Taught({kind: names for kind, names in by_kind.items() if len(names) >= FEWEST_CELLS}, own)


def probabilities(lab: Bench, layer: LastLayer) -> NDArray[np.float64]:
    """Class probabilities (N,C) of a laboratory's cells."""
    return np.asarray(softmax(layer.logits(lab.cells.features), axis=2).mean(1))


def _normal_blood(kinds: NDArray[np.object_], taxonomy: Taxonomy) -> NDArray[np.float64]:
    """The part of normal blood that each cell (N,) is drawn for; kinds that are not there leave theirs to others."""
    shares: dict[str, float] = defaultdict(float)
    for name, share in NORMAL_BLOOD:
        shares[root_kind(name, taxonomy) or name] += share
    parts = np.array([shares[root_kind(kind, taxonomy) or kind] / (kinds == kind).sum() for kind in kinds])
    return np.asarray(parts / parts.sum())


def measure(
    data: Path, names: Sequence[str], classifier: str, reference: str, per_kind: int, seeds: int, slides: int
) -> Report:
    """Coverage and width of the limits over simulated slides, `slides` for each laboratory and each of `seeds`."""
    ref, card = registry.resolve(classifier, "classifier")
    model, taxonomy = registry.load(ref, "cpu"), load_taxonomy("blood")
    reference_ref, reference_card = registry.resolve(reference, "classifier")
    others = read_reference_cells(reference_ref)
    if others is None:
        raise ValueError(f"{reference} has no reference cells")
    kinds = Kinds(reference_card.classes, card.threshold)
    judged: dict[str, list[Judged]] = {"own": [], "others": []}
    for laboratory in laboratories(data, names, card):
        lab = bench(laboratory, model)
        elsewhere = others.take(np.array(others.laboratories, object) != CALLED[laboratory.name])
        for seed in range(seeds):
            taught = teach(lab, laboratory.kinds, card, taxonomy, per_kind, seed)
            own = elsewhere.including(_of_classes(taught.own, card.classes, reference_card.classes))
            for by, cells in (("own", own), ("others", elsewhere)):
                judged[by] += _slides(laboratory, taught, cells, kinds, taxonomy, seed, slides)
    every = {by: [coverage("all", kind, rows) for kind in COMMON] for by, rows in judged.items()}
    each = [
        {"by": by, **coverage(name, kind, [row for row in rows if row[0] == name])}
        for by, rows in judged.items()
        for name in names
        for kind in COMMON
    ]
    what = "limits by the laboratory's own cells cover the truth"
    claims = [
        Claim(f"{what}, {row['kind']}", row["corrected"], at_least=BAR_COVERAGE)
        for row in every["own"]
        if row["slides"]
    ]
    tables = {"By its own cells": every["own"], "By others' alone": every["others"]}
    return Report(f"Limits of a taught {card.name}, {per_kind} cells a type", claims, {**tables, "Each": each})


def _slides(
    laboratory: Laboratory,
    taught: Taught,
    cells: ReferenceCells,
    kinds: Kinds,
    taxonomy: Taxonomy,
    seed: int,
    slides: int,
) -> list[Judged]:
    confusion, rng = confusion_of_cells(cells, kinds, taxonomy), np.random.default_rng(seed)
    if confusion is None:
        raise ValueError(f"{laboratory.name}: its reference cells measure no kind")
    judged: list[Judged] = []
    for _ in range(slides):
        slide = simulated(Simulation(taught.names, cells), taxonomy, rng)
        plain = differential_of(slide.cell_types, taxonomy)
        rows = corrected(plain, slide.cell_types, slide.fields, confusion, taxonomy).rows
        judged += [(laboratory.name, r, 100 * slide.truth[r.cell_type]) for r in rows if r.cell_type in slide.truth]
    return judged


def _of_classes(cells: ReferenceCells, classes: Sequence[str], others: Sequence[str]) -> ReferenceCells:
    """The cells with columns for other classes, which are at least as many."""
    wider = np.zeros((len(cells.cell_types), len(others)), np.float16)
    wider[:, [others.index(name) for name in classes]] = cells.probabilities
    return replace(cells, probabilities=wider)


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="folder of chula_wbc and tecom_wbc")
    command.add_argument("--classifier", default="bundled:classifier", help="one that has not seen them")
    command.add_argument("--reference", default="bundled:classifier", help="whose reference cells are the others'")
    command.add_argument("--laboratories", nargs="+", choices=[CHULA, TECOM], default=[TECOM])
    command.add_argument("--per-kind", type=int, default=10)
    command.add_argument("--seeds", type=int, default=5, help="lessons")
    command.add_argument("--slides", type=int, default=100, help="for each lesson")
    chosen = command.parse_args()
    lessons = chosen.per_kind, chosen.seeds, chosen.slides
    report = measure(chosen.data, chosen.laboratories, chosen.classifier, chosen.reference, *lessons)
    show(report, as_json=chosen.json)


if __name__ == "__main__":
    main()
