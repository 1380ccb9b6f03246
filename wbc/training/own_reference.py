"""What a taught classifier's names are worth at its own laboratory, told by the cells that it was taught with."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from wbc.models.reference_cells import ReferenceCells, read_reference_cells
from wbc.models.registry import ModelRef


def stands_for(named: pd.DataFrame, counted: pd.DataFrame) -> NDArray[np.float32] | None:
    """How many of the white cells `counted` each of the `named` ones stands for, float32 (N,).

    A table of `wbc adapt` asks for as many cells of a rare type as of a common one, so that a cell stands for the more,
    the more there are of the type that it was counted as (Horvitz and Thompson 1952). None where some were named
    otherwise, as where a reviewer's eye fell on a wrong name: nothing tells then what the others are.
    """
    types = named["counted_as"].tolist()
    if not all(types):
        return None
    asked, there = Counter(types), Counter(counted["cell_type"])
    return np.array([max(there[t], asked[t]) / asked[t] for t in types], np.float32)


def reference_of(
    parent: ModelRef,
    chances: NDArray[np.floating],
    names: Sequence[str],
    weights: NDArray[np.float32] | None,
    laboratory: str,
    *,
    is_own: bool,
) -> ReferenceCells | None:
    """The reference cells of a taught classifier: its parent's, and the laboratory's, None where there is none.

    `chances` (N,C) are class probabilities of the laboratory's named cells by what was taught without them. Without
    `weights` they are left out: the parent's alone tell, of laboratories that were strangers to it, which is the more
    careful. Where the parent's layer was kept, the laboratory is no own one, but one stranger more.
    """
    others = read_reference_cells(parent)
    if weights is None:
        return others
    cells = ReferenceCells(
        chances.astype(np.float16), tuple(names), (laboratory,) * len(names), laboratory if is_own else None, weights
    )
    return cells if others is None else others.including(cells)
