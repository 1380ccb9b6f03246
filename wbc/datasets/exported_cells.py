"""Cells of a count as labelled pictures: what a reviewer is given to correct."""

import logging
from collections.abc import Sequence
from os.path import commonpath
from pathlib import Path

import numpy as np
import pandas as pd
from upath import UPath

from wbc.datasets.counted_cells import SIDES
from wbc.datasets.labels import LabelledPicture
from wbc.sought import not_sought_words
from wbc.storage.counts import read_count, read_table

logger = logging.getLogger(__name__)
MEASURED = ("score", "type_score")


def counted_pictures(out: UPath, slide_ids: Sequence[str]) -> list[LabelledPicture]:
    """The counted fields of slides with their cells: names, scores and numbers as the tables have them.

    Raises ValueError where a count does not tell where its fields lie, or which of them were counted.
    """
    return [picture for slide_id in slide_ids for picture in _pictures(out, slide_id)]


def common_folder(pictures: Sequence[LabelledPicture]) -> Path:
    """The folder that the pictures' folders lie in: their names begin with their own folder's."""
    return Path(commonpath([str(picture.path.parent.parent) for picture in pictures]))


def _pictures(out: UPath, slide_id: str) -> list[LabelledPicture]:
    count = read_count(out, slide_id)
    if count.row.source is None or count.row.fields_digest is None:
        raise ValueError(f"{slide_id}: an older version counted it, which did not keep what is needed; count it again")
    if left := not_sought_words(count.row.cells):
        logger.warning("%s: %s were not looked for: no detector can learn from its fields", slide_id, left)
    if count.row.n_seen_again:
        logger.warning(
            "%s: %d white cells have no box in a field, as they count in another: no detector can learn from these",
            slide_id,
            count.row.n_seen_again,
        )
    fields = read_table(out, "fields", slide_id).select(["field", "status"]).to_pylist()
    cells = count.cells.to_pandas()
    counted = [str(field["field"]) for field in fields if field["status"] == "counted"]
    return [_picture(UPath(count.row.source), slide_id, name, cells[cells["field"] == name]) for name in counted]


def _picture(folder: UPath, slide_id: str, field: str, cells: pd.DataFrame) -> LabelledPicture:
    rows = cells[["cell_id", *MEASURED]].to_dict("records")
    return LabelledPicture(
        folder / field,
        cells[SIDES].to_numpy(np.float32),
        tuple(cells["cell_type"].astype(str)),
        slide_id=slide_id,
        measurements=tuple({str(k): float(v) for k, v in row.items() if v == v} for row in rows),  # NaN is not itself
    )
