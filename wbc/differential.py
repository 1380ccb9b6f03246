"""Cells of a slide -> counts, percentages with confidence limits, M:E, NRBC and flags."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtri

from wbc.taxonomy import UNIDENTIFIED, Taxonomy
from wbc.types import Differential, DifferentialRow

_ALPHA = 0.05
# ICSH 2008 asks for 500 nucleated cells, 300 where precision matters less; CLSI H20's observers count 200 each.
_WANTED = (500, 300, 200)


def differential_of(
    cells: Sequence[str] | Mapping[str, int], taxonomy: Taxonomy, n_fields_failed: int = 0
) -> Differential:
    """The differential of a slide's cells, given as one type a cell or as counts by type.

    There is a row for every type of the taxonomy, in its order. A type's count holds its descendants', so rows overlap:
    percentages sum to 100 over the leaves in the differential (`unidentified` is one) plus the cells that were labelled
    with a coarse type only. Percentages and 95 % Clopper-Pearson limits (0..100, sampling error alone) are of the cells
    in the denominator, and None where that is 0 or the row is not in it.

    M:E = M/E has Wilson limits of M/(M+E), carried over to the odds. Without erythroid cells the ratio is None, its
    upper limit infinite and the flag `me_undefined`; without myeloid ones too, both limits are None. A taxonomy without
    M:E sides has neither ratio nor flag. NRBC per 100 white cells is None where the taxonomy names no NRBC or there is
    no white cell.

    Flags stand in a fixed order, each that holds: `below_200` comes with `below_300` and `below_500`. `no_cells` means
    no nucleated cell, whatever else was found.

    Raises ValueError where the taxonomy does not know a type or a number is negative. Sources: ICSH 2008 (Lee et al.,
    Int J Lab Hematol 30:349), CLSI H20-A2, Rümke 1979.
    """
    own = _own_counts(cells, taxonomy)
    if n_fields_failed < 0:
        raise ValueError(f"n_fields_failed is {n_fields_failed}")
    n_differential = sum(own[t.name] for t in taxonomy.cell_types if t.in_differential)
    rows = _rows(own, taxonomy, n_differential)
    by_type = {row.cell_type: row for row in rows}
    me_ratio, me_low, me_high = _myeloid_to_erythroid(own, taxonomy)
    nrbc = None if taxonomy.nrbc is None else by_type[taxonomy.nrbc].count

    flags = [f"below_{n}" for n in _WANTED if n_differential < n]
    for threshold in taxonomy.thresholds:
        row = by_type[threshold.cell_type]
        if row.ci_low is not None and row.ci_high is not None and row.ci_low < threshold.percent < row.ci_high:
            flags.append(f"straddles:{threshold.cell_type}:{threshold.percent:g}")
    conditions = {
        "nrbc_present": bool(nrbc),
        "unidentified_over_10_percent": own[UNIDENTIFIED] * 10 > n_differential,
        "me_undefined": me_ratio is None and any(t.me_side for t in taxonomy.cell_types),
        "fields_failed": n_fields_failed > 0,
        "no_cells": not any(own[t.name] for t in taxonomy.cell_types if t.nucleated),
    }
    return Differential(
        taxonomy=taxonomy.name,
        rows=rows,
        n_cells=sum(own.values()),
        n_differential=n_differential,
        n_unidentified=own[UNIDENTIFIED],
        me_ratio=me_ratio,
        me_low=me_low,
        me_high=me_high,
        nrbc_per_100_wbc=100 * nrbc / n_differential if nrbc is not None and n_differential else None,
        flags=(*flags, *(flag for flag, holds in conditions.items() if holds)),
    )


def not_looked_for(differential: Differential, names: Sequence[str], taxonomy: Taxonomy) -> Differential:
    """The same with no count of the types that `names` mean, of what is below them, and of what would hold them.

    Names that the taxonomy does not know are passed over.
    """
    known = [name for name in names if taxonomy.knows(name)]
    rows = tuple(
        replace(row, count=None)
        if any(taxonomy.is_a(row.cell_type, name) or taxonomy.is_a(name, row.cell_type) for name in known)
        else row
        for row in differential.rows
    )
    return replace(differential, rows=rows)


def told_alone(differential: Differential, names: Collection[str], taxonomy: Taxonomy) -> Differential:
    """The same where cells could be called by these names alone: nothing is said of other types that no cell has.

    Such a nucleated type has no count, percentage or limits, and no threshold that these straddle: its cells were
    called something else. Where all types of a side of M:E are such, there is no M:E, and so with NRBC. A flag,
    `types_not_told`, says so.
    """
    told = {covering for name in names for covering in (taxonomy.resolve(name), *taxonomy.ancestors(name))}
    untold = {
        row.cell_type
        for row in differential.rows
        if not row.count and taxonomy.cell_type(row.cell_type).nucleated and row.cell_type not in {*told, UNIDENTIFIED}
    }
    if not untold:
        return differential
    rows = tuple(
        replace(row, count=None, percent=None, ci_low=None, ci_high=None) if row.cell_type in untold else row
        for row in differential.rows
    )
    sides = [{t.me_side for t in taxonomy.cell_types if t.me_side and t.name not in hidden} for hidden in ((), untold)]
    has_no_ratio = sides[0] != sides[1]
    straddled = tuple(f"straddles:{name}:" for name in untold)
    flags = [flag for flag in differential.flags if not flag.startswith(straddled)]
    if has_no_ratio and "me_undefined" not in flags:
        flags.append("me_undefined")
    differential = replace(differential, rows=rows, flags=(*flags, "types_not_told"))
    if has_no_ratio:
        differential = replace(differential, me_ratio=None, me_low=None, me_high=None)
    return replace(differential, nrbc_per_100_wbc=None) if taxonomy.nrbc in untold else differential


def clopper_pearson(hits: NDArray[np.int64], n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact 95 % limits, as fractions float64 (K,), of proportions `hits` (K,) of `n` > 0.

    Source: Clopper and Pearson, Biometrika 26:404, 1934, eq. of the beta quantiles; tabled for blood by Rümke 1979.
    """
    low = np.where(hits == 0, 0.0, betaincinv(np.maximum(hits, 1), n - hits + 1, _ALPHA / 2))
    high = np.where(hits == n, 1.0, betaincinv(hits + 1, np.maximum(n - hits, 1), 1 - _ALPHA / 2))
    return low, high


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % limits, as fractions, of the proportion `hits` of `n` > 0.

    Source: Wilson, J Am Stat Assoc 22:209, 1927.
    """
    z = float(ndtri(1 - _ALPHA / 2))
    middle = (hits + z * z / 2) / (n + z * z)
    half = z * math.sqrt(hits * (n - hits) / n + z * z / 4) / (n + z * z)
    # At the ends the limits are 0 and 1 exactly, which rounding would miss.
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half


def _own_counts(cells: Sequence[str] | Mapping[str, int], taxonomy: Taxonomy) -> Counter[str]:
    """Cells by the taxonomy's own types, without descendants."""
    if isinstance(cells, str):
        raise ValueError(f"cells is the string {cells!r}, not one type a cell")
    own: Counter[str] = Counter()
    for name, n in Counter(cells).items():
        if n < 0:
            raise ValueError(f"{n} cells of {name}")
        own[taxonomy.resolve(name)] += n
    return own


def _rows(own: Counter[str], taxonomy: Taxonomy, n_differential: int) -> tuple[DifferentialRow, ...]:
    counts = taxonomy.roll_up(own)
    in_denominator = (
        {t.name: counts[t.name] for t in taxonomy.cell_types if t.in_differential} if n_differential else {}
    )
    low, high = clopper_pearson(np.array(list(in_denominator.values()), np.int64), n_differential)
    limits = dict(zip(in_denominator, zip((100 * low).tolist(), (100 * high).tolist(), strict=True), strict=True))
    rows = []
    for t in taxonomy.cell_types:
        n = counts[t.name]
        percent = 100 * n / n_differential if t.name in limits else None
        ci_low, ci_high = limits.get(t.name, (None, None))
        rows.append(DifferentialRow(t.name, t.lineage, n, t.in_differential, percent, ci_low, ci_high))
    return tuple(rows)


def _myeloid_to_erythroid(
    own: Counter[str], taxonomy: Taxonomy
) -> tuple[float, float, float] | tuple[None, float, float] | tuple[None, None, None]:
    """M:E and its limits; None as `differential_of` says."""
    myeloid = sum(own[t.name] for t in taxonomy.cell_types if t.me_side == "myeloid")
    erythroid = sum(own[t.name] for t in taxonomy.cell_types if t.me_side == "erythroid")
    if myeloid + erythroid == 0:
        return None, None, None
    low, high = wilson(myeloid, myeloid + erythroid)
    if erythroid == 0:
        return None, low / (1 - low), math.inf
    return myeloid / erythroid, low / (1 - low), high / (1 - high)
