"""What a classifier may be asked on a slide of a laboratory that it has not seen: of the names it gives, so many right.

Its reference cells tell, each named by a model that had not seen the cell's laboratory. A name is given from the lowest
score by which it is right often enough in every laboratory; where there is no such score, it is not given to strangers.
Whether that holds is told by each laboratory in turn, by thresholds that the others have chosen.
"""

from collections.abc import Mapping

import numpy as np

from benchmarks.common import Claim, Report, Row, parser, show
from wbc.cells.certainty import FEWEST_CELLS, FEWEST_LABORATORIES, certainty_of, verdicts
from wbc.cells.naming import name_cells
from wbc.evaluation.reliability import reliability_of
from wbc.models.reference_cells import ReferenceCells, read_reference_cells
from wbc.models.registry import resolve
from wbc.taxonomy import GENERIC, UNIDENTIFIED, Taxonomy, load_taxonomy
from wbc.types import Threshold

PROMISE, BAR_CALIBRATION = 0.9, 0.05
ONE_FOR_ALL = 0.8
# A name that is likelier than all others together, or surer.
SCORES = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


def promised(cells: ReferenceCells, classes: tuple[str, ...], taxonomy: Taxonomy) -> dict[str, float]:
    """The names that a classifier of these classes may give to strangers, each with its lowest score.

    They are roots of the taxonomy's tree: stages of maturity are told apart by too few laboratories. FEWEST_CELLS are
    so named in at least FEWEST_LABORATORIES, or nothing is known.
    """
    places, found = np.array(cells.laboratories, object), {}
    for kind in _roots(classes, taxonomy):
        is_kind = verdicts(cells.cell_types, kind, taxonomy) == 1
        for score in SCORES:
            named = name_cells(cells.probabilities, classes, taxonomy, {kind: score}).types == kind
            of_places = [named & (places == place) for place in sorted(set(places))]
            shares = [is_kind[which].mean() for which in of_places if which.sum() >= FEWEST_CELLS]
            if len(shares) >= FEWEST_LABORATORIES and min(shares) >= PROMISE:
                found[kind] = score
                break
    return found


def figures(
    cells: ReferenceCells, others: ReferenceCells, classes: tuple[str, ...], taxonomy: Taxonomy, threshold: Threshold
) -> Row:
    """The parts of the cells that are named and of these right, and how far scores of the named are from that.

    The scores are what the others say of the names; beside them the classifier's own probabilities.
    """
    given, known = (name_cells(c.probabilities, classes, taxonomy, threshold) for c in (cells, others))
    certainty = certainty_of(known, others.cell_types, others.laboratories, taxonomy)
    named, right = given.types != UNIDENTIFIED, np.zeros(len(given.types), bool)
    for name in set(given.types[named]):
        right |= (given.types == name) & (verdicts(cells.cell_types, name, taxonomy) == 1)
    told, own = (
        reliability_of(n.scores[named].astype(np.float64), right[named]).ece for n in (certainty.of(given), given)
    )
    shares = {"named": float(named.mean()), "right": float(right[named].mean())}
    return {**shares, "calibration error": told, "calibration error of probabilities": own}


def measure(classifier: str, taxonomy: Taxonomy) -> Report:
    """The thresholds of all laboratories, and what those of all but one are worth on that one."""
    ref, card = resolve(classifier, "classifier")
    cells = read_reference_cells(ref)
    if cells is None:
        raise ValueError(f"{classifier} has no reference cells")
    places, rows = np.array(cells.laboratories, object), []
    for place in sorted(set(cells.laboratories)):
        own, others = cells.take(places == place), cells.take(places != place)
        thresholds = promised(others, card.classes, taxonomy)
        before, after = (figures(own, others, card.classes, taxonomy, t) for t in (ONE_FOR_ALL, thresholds))
        beside = {f"{key}, one threshold of {ONE_FOR_ALL}": value for key, value in before.items()}
        rows.append({"laboratory": place, **after, **beside, "names": _words(thresholds)})
    of_all = promised(cells, card.classes, taxonomy)
    worst = min(float(row["right"]) for row in rows)
    claims = [
        Claim("right of the cells that are named, worst laboratory left out", worst, at_least=PROMISE),
        Claim(
            "calibration error, worst laboratory left out",
            max(float(row["calibration error"]) for row in rows),
            at_most=BAR_CALIBRATION,
        ),
        Claim("named, mean over laboratories", float(np.mean([row["named"] for row in rows]))),
    ]
    remarks = [f"stranger_threshold of all laboratories: {_words(of_all)}"]
    return Report(f"What is promised to strangers: {card.name}, {taxonomy.name}", claims, {"left out": rows}, remarks)


def _roots(classes: tuple[str, ...], taxonomy: Taxonomy) -> list[str]:
    return sorted({(taxonomy.resolve(name), *taxonomy.ancestors(name))[-1] for name in classes if name != GENERIC})


def _words(thresholds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {score}" for name, score in thresholds.items()) or "no name"


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--classifier", default="bundled:classifier", help="one with reference cells")
    command.add_argument("--taxonomy", default="blood")
    chosen = command.parse_args()
    show(measure(chosen.classifier, load_taxonomy(chosen.taxonomy)), as_json=chosen.json)


if __name__ == "__main__":
    main()
