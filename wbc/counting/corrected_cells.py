"""People's names for cells laid over what the models found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wbc.cells.geometry import box_iou
from wbc.storage.categorical import Categorical
from wbc.storage.corrections import Correction, applicable
from wbc.storage.detections import FieldRow, SlideDetections
from wbc.storage.tables import Review
from wbc.taxonomy import NOT_A_WHITE_CELL, UNIDENTIFIED, Taxonomy
from wbc.types import CellNames

SAME_CELL_IOU = 0.5
UNKNOWN = float("nan")


@dataclass(frozen=True, slots=True)
class Placed:
    """Corrections of a slide: those of a cell that was found, by its row, and the cells that no model found.

    `given` are all that apply to the fields as they are.
    """

    given: tuple[Correction, ...]
    found: Mapping[int, Correction]
    missed: tuple[Correction, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReviewedCells:
    """A slide's cells with the names that count; beside each what a person made of its name, None where none did.

    No `reviews` at all where nobody looked at any.
    """

    cells: SlideDetections
    names: CellNames
    reviews: tuple[Review | None, ...]

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Whose name (N,) a person gave; one who could not tell gave none."""
        if not self.reviews:
            return np.zeros(len(self.cells), bool)
        told = [r is not None and name != UNIDENTIFIED for r, name in zip(self.reviews, self.names.types, strict=True)]
        return np.array(told, bool)


def place(
    corrections: Sequence[Correction], fields: Sequence[FieldRow], found: SlideDetections, counts: NDArray[np.bool_]
) -> Placed:
    """Find the cell of each correction: the box of its field with the largest IoU, from 0.5 on.

    Boxes that count by their score (N,) go before those that do not. Where none is there, a person saw a cell that was
    missed; nothing is missed where a person saw no white cell.
    """
    by_name = {row.field: row for row in fields if row.status == "counted"}
    given = applicable(corrections, {row.field: row.digest for row in fields})
    placed: dict[int, Correction] = {}
    missed: list[Correction] = []
    for correction in given:
        if correction.field not in by_name:
            continue
        here = found.fields.where(correction.field)
        row = _nearest(correction, found, here & counts, placed)
        row = _nearest(correction, found, here & ~counts, placed) if row is None else row
        if row is not None:
            placed[row] = correction
        elif correction.cell_type != NOT_A_WHITE_CELL:
            missed.append(correction)
    return Placed(given, placed, tuple(missed))


def _nearest(
    correction: Correction, found: SlideDetections, among: NDArray[np.bool_], taken: Mapping[int, Correction]
) -> int | None:
    rows = np.array([row for row in np.flatnonzero(among) if row not in taken], np.int64)
    if not len(rows):
        return None
    iou = box_iou(np.array([correction.box], np.float32), found.boxes[rows])[0]
    return int(rows[iou.argmax()]) if iou.max() >= SAME_CELL_IOU else None


def review(
    cells: SlideDetections, rows: NDArray[np.int64], names: CellNames, placed: Placed, taxonomy: Taxonomy
) -> ReviewedCells:
    """Cells with people's names in the place of the models', and behind them those that a model missed.

    `rows` (N,) are the cells' rows among all that was found. Raises ValueError for a name that the taxonomy lacks.
    """
    if not (placed.found or placed.missed):
        return ReviewedCells(cells, names, ())
    types = names.types.astype(object)
    reviews: list[Review | None] = [None] * len(rows)
    for i in np.flatnonzero(np.isin(rows, list(placed.found))):
        said = placed.found[int(rows[i])]
        reviews[i] = Review(types[i], said.by, said.at)
        types[i] = taxonomy.resolve(said.cell_type)
    missed = placed.missed
    added = CellNames.of_types(np.array([taxonomy.resolve(c.cell_type) for c in missed], object))
    return ReviewedCells(
        SlideDetections.concatenate([cells, _boxes(missed, cells.probabilities.shape[1])]) if missed else cells,
        _joined(replace(names, types=types), added),
        (*reviews, *(Review(None, c.by, c.at) for c in missed)),
    )


def _boxes(missed: Sequence[Correction], n_kinds: int) -> SlideDetections:
    """Cells that no model found: no model scored them."""
    n = len(missed)
    unknown = np.full(n, UNKNOWN, np.float32)
    return SlideDetections(
        Categorical.of(c.field for c in missed),
        np.array([c.box for c in missed], np.float32).reshape(n, 4),
        Categorical.of(c.cell_type for c in missed),
        unknown,
        np.full((n, n_kinds), UNKNOWN, np.float16),
        unknown.copy(),
        Categorical.repeat("", n),
    )


def _joined(one: CellNames, other: CellNames) -> CellNames:
    return CellNames(
        np.concatenate([one.types, other.types]),
        np.concatenate([one.scores, other.scores]),
        np.concatenate([one.second_types, other.second_types]),
        np.concatenate([one.second_scores, other.second_scores]),
    )


def amended(standing: Sequence[Correction], told: Sequence[Correction]) -> tuple[Correction, ...]:
    """What was said of a slide's cells with what is told now, which takes the place of what was said of the same cell.

    What was said of another picture under a field's name is kept: the picture may come back.
    """
    kept = list(standing)
    for new in told:
        same = [c for c in kept if (c.field, c.digest) == (new.field, new.digest)]
        boxes = np.array([c.box for c in same], np.float32).reshape(-1, 4)
        iou = box_iou(np.array([new.box], np.float32), boxes)[0]
        if len(same) and iou.max() >= SAME_CELL_IOU:
            kept.remove(same[int(iou.argmax())])
        kept.append(new)
    return tuple(kept)
