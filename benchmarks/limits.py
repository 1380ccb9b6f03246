"""Whether limits cover the truth: of percentages as counted, and of those corrected by a classifier's misnaming.

Slides are simulated from a classifier's reference cells. Each laboratory in turn is the one that counts: its cells are
drawn with the names that they really got, and the correction knows the other laboratories alone. Compositions are those
of blood, from normal to far from it; fields differ in them, so that cells cluster.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Claim, Report, Row, cpu_of, parser, show
from wbc.cells.naming import name_cells
from wbc.counting.correction import confusion_of_cells
from wbc.differential import differential_of
from wbc.misnaming import corrected
from wbc.models.reference_cells import ReferenceCells, read_reference_cells
from wbc.models.registry import resolve
from wbc.storage.detections import Kinds
from wbc.synth.smear import NORMAL_BLOOD
from wbc.taxonomy import Taxonomy, load_taxonomy
from wbc.types import Differential, DifferentialRow
from wbc.unfolding import Confusion

COMMON = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
BAR_COVERAGE, BAR_SECONDS = 0.94, 0.2
CELLS = (50, 500)
CELLS_A_FIELD = (2.0, 8.0)
FAR_FROM_NORMAL = 0.3  # of the slides
# Pseudo-cells of a Dirichlet: how near a slide is to normal blood, normal or not, and a field to its slide.
NEAR, FAR = 12.0, 3.0
ALIKE_FIELDS = (8.0, 40.0)
FEWEST_CELLS = 10  # of a kind in a laboratory: fewer stand for nothing


Judged = tuple[str, DifferentialRow, float]  # laboratory left out, row, true percentage


@dataclass(frozen=True, slots=True, eq=False)
class Laboratory:
    """The names that the cells of each kind got in a laboratory, and the reference cells of the others."""

    names: Mapping[str, NDArray[np.object_]]
    others: ReferenceCells


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedSlide:
    """A slide's true shares of the kinds in its differential, and its cells by name and field."""

    truth: Mapping[str, float]
    cell_types: tuple[str, ...]
    fields: tuple[int, ...]


def laboratories(cells: ReferenceCells, model: Kinds, taxonomy: Taxonomy) -> dict[str, Laboratory]:
    """Each laboratory of some reference cells; ValueError where there are fewer than three."""
    names = name_cells(cells.probabilities, model.names, taxonomy, model.threshold_of(is_strange=True)).types
    places = np.array(cells.laboratories, object)
    kinds = np.array([root_kind(name, taxonomy) for name in cells.cell_types], object)
    found = {}
    for place in sorted(set(cells.laboratories)):
        own = {k: names[(places == place) & (kinds == k)] for k in dict.fromkeys(kinds) if k is not None}
        enough = {kind: given for kind, given in own.items() if len(given) >= FEWEST_CELLS}
        found[place] = Laboratory(enough, cells.take(places != place))
    if len(found) < 3:
        raise ValueError(f"{len(found)} laboratories: one is left out, and two must tell of it")
    return found


def simulated(laboratory: Laboratory, taxonomy: Taxonomy, rng: np.random.Generator) -> SimulatedSlide:
    """A slide of a laboratory's cells."""
    kinds = list(laboratory.names)
    normal: dict[str, float] = defaultdict(float)
    for name, share in NORMAL_BLOOD:
        normal[root_kind(name, taxonomy) or name] += share
    nearness = FAR if rng.random() < FAR_FROM_NORMAL else NEAR
    shares = rng.dirichlet(np.maximum(nearness * np.array([normal[kind] for kind in kinds]), 0.02))
    n = int(rng.integers(CELLS[0], CELLS[1] + 1))
    n_fields = max(3, int(n / rng.uniform(*CELLS_A_FIELD)))
    alike = rng.uniform(*ALIKE_FIELDS)
    types: list[str] = []
    fields: list[int] = []
    for field, size in enumerate(rng.multinomial(n, np.full(n_fields, 1 / n_fields))):
        of_kind = rng.multinomial(size, rng.dirichlet(np.maximum(alike * shares, 1e-3)))
        for kind, count in zip(kinds, of_kind, strict=True):
            types += rng.choice(laboratory.names[kind], count).tolist()
        fields += [field] * int(size)
    counted = [taxonomy.cell_type(kind).in_differential for kind in kinds]
    total = float(shares[counted].sum())
    truth = {k: float(s) / total for k, s, c in zip(kinds, shares, counted, strict=True) if c}
    return SimulatedSlide(truth, tuple(types), tuple(fields))


def measure(classifier: str, n_slides: int, seed: int, cells_a_kind: int) -> Report:
    """Coverage and width of both kinds of limits over simulated slides, for each laboratory left out."""
    ref, card = resolve(classifier, "classifier")
    cells, taxonomy = read_reference_cells(ref), load_taxonomy("blood")
    if cells is None:
        raise ValueError(f"{classifier} has no reference cells")
    model = Kinds(card.classes, card.threshold, stranger_threshold=card.stranger_threshold)
    places = laboratories(cells.at_most(cells_a_kind), model, taxonomy)
    strange = partial(confusion_of_cells, kinds=model, taxonomy=taxonomy, is_strange=True)
    confusions = {place: strange(laboratory.others) for place, laboratory in places.items()}
    rng, seconds = np.random.default_rng(seed), 0.0
    judged: list[Judged] = []
    for i in range(n_slides):
        place = list(places)[i % len(places)]
        slide, confusion = simulated(places[place], taxonomy, rng), confusions[place]
        result, spent = cpu_of(partial(_differential, slide, confusion, taxonomy))
        seconds += spent
        judged += [(place, r, 100 * slide.truth[r.cell_type]) for r in result.rows if r.cell_type in slide.truth]
    return _report(card.name, judged, seconds / n_slides)


def _differential(slide: SimulatedSlide, confusion: Confusion | None, taxonomy: Taxonomy) -> Differential:
    plain = differential_of(slide.cell_types, taxonomy)
    return plain if confusion is None else corrected(plain, slide.cell_types, slide.fields, confusion, taxonomy)


def _report(model: str, judged: Sequence[Judged], seconds: float) -> Report:
    every = [coverage("all", kind, judged) for kind in COMMON]
    places = sorted({place for place, _, _ in judged})
    each = [coverage(p, kind, [j for j in judged if j[0] == p]) for p in places for kind in COMMON]
    claims = [
        *(
            Claim(f"corrected limits cover the truth, {row['kind']}", row["corrected"], at_least=BAR_COVERAGE)
            for row in every
        ),
        Claim("a slide", seconds, "CPU-s", at_most=BAR_SECONDS),
    ]
    tables = {"All laboratories": every, "Each laboratory left out": [row for row in each if row["slides"]]}
    return Report(f"Limits and misnaming of {model}", claims, tables)


def coverage(place: str, kind: str, judged: Sequence[Judged]) -> Row:
    """How often the limits of a kind hold its true percentage, how wide they are and how far off the middle is."""
    rows = [(row, truth) for _, row, truth in judged if row.cell_type == kind and row.percent_corrected is not None]
    plain = np.array([(row.percent, row.ci_low, row.ci_high) for row, _ in rows], float).reshape(-1, 3)
    undone = np.array([(row.percent_corrected, row.low, row.high) for row, _ in rows], float).reshape(-1, 3)
    truth = np.array([truth for _, truth in rows])
    figures: dict[str, float] = {}
    for name, told in (("plain", plain), ("corrected", undone)):
        figures[name] = _mean((told[:, 1] <= truth) & (truth <= told[:, 2]))
        figures[f"{name} width"] = _mean(told[:, 2] - told[:, 1])
        figures[f"{name} error"] = _mean(np.abs(told[:, 0] - truth))
    return {"laboratory": place, "kind": kind, "slides": len(rows), **figures}


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def root_kind(name: str, taxonomy: Taxonomy) -> str | None:
    """The root of the taxonomy's tree above a type; None where the taxonomy does not know it."""
    return (taxonomy.resolve(name), *taxonomy.ancestors(name))[-1] if taxonomy.knows(name) else None


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--classifier", default="bundled:classifier", help="a model with reference cells")
    command.add_argument("--slides", type=int, default=1000)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--cells", type=int, default=100, help="of a kind and laboratory at most")
    chosen = command.parse_args()
    show(measure(chosen.classifier, chosen.slides, chosen.seed, chosen.cells), as_json=chosen.json)


if __name__ == "__main__":
    main()
