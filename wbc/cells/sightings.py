"""Cells of a slide that were seen before: fields that overlap show the same ones twice."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The part of its bits in which two prints of one cell differ at most. Other cells: 0.32 and more of 62,000 pairs from
# different smears of `chula_wbc`, 0.22 and more of 7.7 million pairs of `pbc_cells` and `mll_marrow`.
SAME_CELL = 0.2
BLOCK = 1024


def seen_again(prints: Sequence[str], fields: NDArray[np.int32], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of a slide's cells (N,) are shown better by another field: of the sightings of a cell the surest counts.

    `prints` are those of `cell_prints`, "" of a box that has none, which is never the same as another; `fields` say
    which field each is in. Two cells of one field are two.
    """
    again = np.zeros(len(prints), bool)
    known = np.array([i for i in np.argsort(-scores, kind="stable") if prints[i]], int)
    if len(known) < 2:
        return again
    signs = _signs([prints[i] for i in known])
    for start in range(0, len(known), BLOCK):
        alike = (1 - signs[start : start + BLOCK] @ signs.T / signs.shape[1]) / 2 <= SAME_CELL
        alike &= fields[known[start : start + BLOCK], None] != fields[known]
        for one, other in np.argwhere(alike):
            if start + one < other and not again[known[start + one]]:
                again[known[other]] = True
    return again


def _signs(prints: Sequence[str]) -> NDArray[np.float32]:
    """Prints as ±1 float32 (N,B), whose products tell how many bits agree."""
    packed = np.frombuffer(bytes.fromhex("".join(prints)), np.uint8).reshape(len(prints), -1)
    return np.where(np.unpackbits(packed, axis=1)[:, :-1], 1, -1).astype(np.float32)
