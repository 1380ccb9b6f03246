"""Whether a slide's white cells look like those that the classifier has learnt from: all, or those of some fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wbc.storage.detections import Kinds, SlideDetections

# Among familiar fields those are strange whose middle cell is beyond the classifier's limit, and TIMES as far as the
# slide's nearer quarter: a laboratory whose cells vary has many just beyond the limit (a quarter of MLL's). They tell
# where they show more than SHARE of the white cells, FEWEST at least.
TIMES, SHARE, FEWEST = 2.5, 0.1, 3


@dataclass(frozen=True, slots=True, eq=False)
class Familiarity:
    """How far a slide's white cells look from those that its classifier has learnt from, as parts of its limit.

    `slide` is the middle cell's distance: a known laboratory's slides go up to 1. None where the classifier does not
    know, or there is no white cell. `fields` are those of the fields that show any, by name. `strange` (N,) are the
    boxes that are named as a stranger's: all of them, those of some fields, or none.
    """

    strange: NDArray[np.bool_]
    slide: float | None = None
    fields: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_strange(self) -> bool:
        """Whether the slide as a whole is a stranger's."""
        return (self.slide or 0) > 1

    @property
    def is_partly_strange(self) -> bool:
        """Whether some fields of a slide are that is none as a whole."""
        return not self.is_strange and bool(self.strange.any())


def familiarity(cells: SlideDetections, kinds: Kinds | None) -> Familiarity:
    """How familiar the cells (N) of a slide look to the classifier of these kinds."""
    none = np.zeros(len(cells), bool)
    known = np.flatnonzero(np.isfinite(cells.distances))
    if kinds is None or kinds.limit is None or not len(known):
        return Familiarity(none)
    distances, codes = cells.distances[known].astype(np.float64) / kinds.limit, cells.fields.codes[known]
    shown, middles = _medians(distances, codes)
    by_name = {cells.fields.categories[code]: value for code, value in zip(shown, middles.tolist(), strict=True)}
    slide = float(np.median(distances))
    if slide > 1:
        return Familiarity(~none, slide, by_name)
    odd = shown[middles > max(1.0, TIMES * float(np.quantile(distances, 0.25)))]
    n_odd = np.isin(codes, odd).sum()
    is_told = n_odd >= FEWEST and n_odd > SHARE * len(known)
    return Familiarity(np.isin(cells.fields.codes, odd) if is_told else none, slide, by_name)


def _medians(values: NDArray[np.float64], codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Which codes there are, and the median of the values of each."""
    in_order = values[np.lexsort((values, codes))]
    shown, n = np.unique(codes, return_counts=True)
    first = np.cumsum(n) - n
    return shown, (in_order[first + (n - 1) // 2] + in_order[first + n // 2]) / 2
