"""White cells that are left out of a slide's count, as another field shows them, too, and better."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.cells.sightings import seen_again
from wbc.storage.counts import read_evidence, read_table
from wbc.storage.detections import SlideDetections
from wbc.storage.tables import SlideRow, arrow_text

Box = tuple[float, float, float, float]


def other_sightings(found: SlideDetections, counts: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which boxes (N,) of those that count (N,) are sightings of a cell that counts elsewhere."""
    again, prints = np.zeros(len(found), bool), found.prints
    asked = np.flatnonzero(counts & ~prints.where(""))
    of_asked = [prints.categories[code] for code in prints.codes[asked]]
    again[asked] = seen_again(of_asked, found.fields.codes[asked], found.scores[asked])
    return again


def left_out_of(out: UPath, row: SlideRow) -> Mapping[str, list[Box]]:
    """The boxes of the sightings that a committed count left out, by field; none of those that a person named.

    Raises as `read_evidence` does.
    """
    boxes: dict[str, list[Box]] = defaultdict(list)
    if not row.n_seen_again:
        return boxes
    _, evidence = read_evidence(out, row.slide_id)
    found = evidence.detections
    again = found.take(other_sightings(found, found.scores >= (row.min_score or 0.0)))
    cells = read_table(out, "cells", row.slide_id).select(["field", "x0", "y0", "x1", "y1"]).to_pydict()
    counted = set(zip(*cells.values(), strict=True))
    for name, box in zip(again.fields, again.boxes.tolist(), strict=True):
        if (arrow_text(name), *box) not in counted:
            boxes[arrow_text(name)].append((box[0], box[1], box[2], box[3]))
    return boxes
