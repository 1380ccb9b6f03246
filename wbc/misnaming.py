"""A slide's differential, corrected by how cells of known type were named: percentages whose limits hold misnaming."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wbc.taxonomy import NOT_A_WHITE_CELL, UNIDENTIFIED, Taxonomy
from wbc.types import Differential, DifferentialRow
from wbc.unfolding import Confusion, Shares, unfold

# At 1 the limits of two laboratories held the truth in 0.93 to 0.99 of slides: benchmarks/taught_limits.py.
CHOSEN = 0.5


def confusion_of(
    named: Sequence[str],
    true: Sequence[str],
    laboratories: Sequence[str],
    own: str | None,
    taxonomy: Taxonomy,
    weights: NDArray[np.floating] | None = None,
) -> Confusion | None:
    """How cells of known type (N,) were named by a taxonomy, by laboratory; `own` is the one that counts.

    With `weights` (N,) a cell stands for so many of its laboratory's. What cells of unlike weights tell of a kind is
    worth fewer cells alike: the square of their sum by the sum of their squares (Kish 1965). Those of the own
    laboratory are worth CHOSEN of that: within a type they were chosen for being worth naming, not drawn.

    Kinds are the roots of the taxonomy's tree: labels may be as coarse as these. Cells of a type that it does not know
    are left out, and so are those that were refused: a slide's are in no percentage either. None where no kind is
    measured.
    """
    kinds = tuple(dict.fromkeys(_root(t.name, taxonomy) for t in taxonomy.cell_types if t.nucleated))
    kinds = tuple(kind for kind in kinds if kind != UNIDENTIFIED)
    known = [
        i
        for i, name in enumerate(true)
        if taxonomy.knows(name) and _root(name, taxonomy) in kinds and named[i] != NOT_A_WHITE_CELL
    ]
    used = {_root(true[i], taxonomy) for i in known} | {_root(name, taxonomy) for name in named}
    kinds = tuple(kind for kind in kinds if kind in used)
    column = {kind: i for i, kind in enumerate((*kinds, UNIDENTIFIED))}
    places = sorted({laboratories[i] for i in known})
    counts = np.zeros((len(places), len(kinds), len(kinds) + 1))
    squares = np.zeros((len(places), len(kinds), 1))
    for i in known:
        place, kind, weight = places.index(laboratories[i]), column[_root(true[i], taxonomy)], 1.0
        if weights is not None:
            weight = float(weights[i])
        counts[place, kind, column[_root(named[i], taxonomy)]] += weight
        squares[place, kind] += weight**2
    counts *= np.divide(counts.sum(2, keepdims=True), squares, out=np.zeros_like(squares), where=squares > 0)
    if weights is not None and own in places:
        counts[places.index(own)] *= CHOSEN
    others = [i for i, place in enumerate(places) if place != own]
    confusion = Confusion(kinds, counts[others], counts[places.index(own)] if own in places else None)
    return confusion if confusion.measured.any() else None


def corrected(
    differential: Differential,
    cell_types: Sequence[str],
    fields: Sequence[Hashable],
    confusion: Confusion,
    taxonomy: Taxonomy,
    is_known: NDArray[np.bool_] | None = None,
) -> Differential:
    """A differential with `percent_corrected`, `low` and `high` of the kinds that the confusion has measured.

    `cell_types` and `fields` (N,) are of the cells that it was made of; where a person gave the name (`is_known`), it
    stands as it is. Percentages are of the same cells as `percent`,
    `unidentified` ones as what they are likely to be; they sum to 100 over the kinds where all are measured. All other
    rows have None. A flag `corrected_crosses:TYPE:PERCENT` says that the corrected and the plain percentage lie on two
    sides of a decision threshold.
    """
    names = (*confusion.kinds, UNIDENTIFIED)
    counted = np.array([taxonomy.cell_type(kind).in_differential for kind in confusion.kinds], bool)
    shares = None
    if differential.n_differential:
        person = np.zeros(len(cell_types), bool) if is_known is None else is_known
        machines, peoples = (_named(cell_types, fields, names, taxonomy, which) for which in (~person, person))
        shares = unfold(machines, confusion, counted, peoples)
    if shares is None:
        return differential
    told = {kind: i for i, kind in enumerate(confusion.kinds) if confusion.measured[i] and counted[i]}
    rows = tuple(
        _corrected_row(row, shares, told[row.cell_type]) if row.cell_type in told else row for row in differential.rows
    )
    return replace(differential, rows=rows, flags=(*differential.flags, *_crossings(rows, taxonomy)))


def _named(
    cell_types: Sequence[str],
    fields: Sequence[Hashable],
    names: Sequence[str],
    taxonomy: Taxonomy,
    which: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """How many of these cells (a mask) each field has of each name, int64 (fields, names); others are left out."""
    column = {name: i for i, name in enumerate(names)}
    root = {name: _root(name, taxonomy) for name in set(cell_types)}
    line = {field: i for i, field in enumerate(dict.fromkeys(fields))}
    cells = [
        (line[field], column[root[name]])
        for name, field, is_meant in zip(cell_types, fields, which, strict=True)
        if is_meant and root[name] in column
    ]
    counts = np.zeros((len(line), len(names)), np.int64)
    np.add.at(counts, tuple(np.array(cells, np.int64).reshape(-1, 2).T), 1)
    return counts


def _root(name: str, taxonomy: Taxonomy) -> str:
    """The coarsest type that covers `name`."""
    return (taxonomy.resolve(name), *taxonomy.ancestors(name))[-1]


def _corrected_row(row: DifferentialRow, shares: Shares, kind: int) -> DifferentialRow:
    low, mean, high = (100 * float(part[kind]) for part in (shares.low, shares.mean, shares.high))
    return replace(row, percent_corrected=mean, low=low, high=high)


def _crossings(rows: Sequence[DifferentialRow], taxonomy: Taxonomy) -> tuple[str, ...]:
    """The flags of the thresholds between a plain percentage and its correction."""
    by_type = {row.cell_type: row for row in rows}
    flags = []
    for threshold in taxonomy.thresholds:
        plain, other = (getattr(by_type[threshold.cell_type], column) for column in ("percent", "percent_corrected"))
        if plain is not None and other is not None and (plain < threshold.percent) != (other < threshold.percent):
            flags.append(f"corrected_crosses:{threshold.cell_type}:{threshold.percent:g}")
    return tuple(flags)
