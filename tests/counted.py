"""What a count left in OUT, to be compared with another; tables of a count that no model made."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO

import numpy as np
import pandas as pd
import pyarrow as pa
from upath import UPath

from wbc.storage.detections import FieldRow, Kinds, Origin, SlideDetections, detections_table, fields_table
from wbc.storage.layout import TableName
from wbc.types import CellNames

# When a count was made, by which run and how long it took; the file of fields tells the time of each.
OF_THE_RUN = ("counted_at", "run_id", "seconds", "fields_digest")

SORTED_BY = {
    "cells": ["cell_id"],
    "differentials": ["cell_type"],
    "fields": ["field"],
    "detections": ["detection_id"],
    "slides": [],
}


def read_tables(out: UPath) -> dict[str, pd.DataFrame]:
    """A count's tables, sorted, without what differs from run to run: when it was made and how long it took."""
    tables = {}
    for name, keys in SORTED_BY.items():
        files = sorted((out / name).glob("*.parquet"), key=lambda path: path.name)
        parts = [pd.read_parquet(BytesIO(file.read_bytes())) for file in files]
        table = pd.concat(parts).drop(columns=[*OF_THE_RUN], errors="ignore")
        tables[name] = table.sort_values(["slide_id", *keys]).reset_index(drop=True)
    return tables


def called(types: Sequence[str], scores: Sequence[float]) -> CellNames:
    """Cells of these types, with the classifier's scores."""
    return replace(CellNames.of_types(np.array(types, object)), scores=np.array(scores, np.float32))


def count_tables(
    cells: pa.Table, differentials: pa.Table, fields: Sequence[FieldRow] = ()
) -> dict[TableName, pa.Table]:
    """The tables of a count beside its row; each cell is a detection, which may be an eosinophil or a lymphocyte."""
    slide_id = (cells["slide_id"].to_pylist() or ["s1"])[0]
    boxes = np.stack([cells[side].to_numpy() for side in ("x0", "y0", "x1", "y1")], 1)
    names, scores = tuple(cells["field"].to_pylist()), cells["score"].to_numpy()
    sure = cells["type_score"].to_numpy()
    eosinophil = np.where(np.array(cells["cell_type"].to_pylist()) == "eosinophil", sure, 1 - sure)
    probabilities = np.stack([eosinophil, 1 - eosinophil], 1).astype(np.float16)
    classes = tuple("rbc" if np.isnan(s) else "wbc" for s in sure)
    detections = SlideDetections(names, boxes, classes, scores, probabilities, np.full(len(names), np.nan, np.float32))
    origin = Origin("d0", "d@0", "c@0", 0.05, 1, "float32", Kinds(("eosinophil", "lymphocyte"), 0.4))
    return {
        "cells": cells,
        "differentials": differentials,
        "fields": fields_table(slide_id, fields),
        "detections": detections_table(slide_id, detections, origin),
    }
