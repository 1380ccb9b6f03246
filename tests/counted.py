"""Tables of a count that no model made."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from wbc.storage.categorical import Categorical
from wbc.storage.detections import FieldRow, Kinds, Origin, SlideDetections, detections_table, fields_table
from wbc.storage.layout import TableName
from wbc.types import CellNames


def called(types: Sequence[str], scores: Sequence[float]) -> CellNames:
    """Cells of these types, with the classifier's scores."""
    return replace(CellNames.of_types(np.array(types, object)), scores=np.array(scores, np.float32))


def count_tables(
    cells: pa.Table, differentials: pa.Table, fields: Sequence[FieldRow] = ()
) -> dict[TableName, pa.Table]:
    """The tables of a count beside its row; each cell is a detection, which may be an eosinophil or a lymphocyte."""
    slide_id = (cells["slide_id"].to_pylist() or ["s1"])[0]
    boxes = np.stack([cells[side].to_numpy() for side in ("x0", "y0", "x1", "y1")], 1)
    names, scores = Categorical.of(cells["field"].to_pylist()), cells["score"].to_numpy()
    sure = cells["type_score"].to_numpy()
    eosinophil = np.where(np.array(cells["cell_type"].to_pylist()) == "eosinophil", sure, 1 - sure)
    probabilities = np.stack([eosinophil, 1 - eosinophil], 1).astype(np.float16)
    classes = Categorical.of("rbc" if np.isnan(s) else "wbc" for s in sure)
    detections = SlideDetections(
        names,
        boxes,
        classes,
        scores,
        probabilities,
        np.full(len(names), np.nan, np.float32),
        Categorical.repeat("", len(names)),
    )
    origin = Origin("d0", "d@0", "c@0", 0.05, 1, "float32", Kinds(("eosinophil", "lymphocyte"), 0.4))
    return {
        "cells": cells,
        "differentials": differentials,
        "fields": fields_table(slide_id, fields),
        "detections": detections_table(slide_id, detections, origin),
    }
