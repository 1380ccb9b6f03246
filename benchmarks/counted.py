"""What a count left in OUT, to be compared with another."""

from io import BytesIO

import pandas as pd
from upath import UPath

Tables = dict[str, pd.DataFrame]

# When a count was made, by which run and how long it took; the file of fields tells the time of each.
OF_THE_RUN = ("counted_at", "run_id", "seconds", "fields_digest")

SORTED_BY = {
    "cells": ["cell_id"],
    "differentials": ["cell_type"],
    "fields": ["field"],
    "detections": ["detection_id"],
    "slides": [],
}


def read_tables(out: UPath) -> Tables:
    """A count's tables, sorted, without what differs from run to run: when it was made and how long it took."""
    tables = {}
    for name, keys in SORTED_BY.items():
        files = sorted((out / name).glob("*.parquet"), key=lambda path: path.name)
        parts = [pd.read_parquet(BytesIO(file.read_bytes())) for file in files]
        table = pd.concat(parts).drop(columns=[*OF_THE_RUN], errors="ignore")
        tables[name] = table.sort_values(["slide_id", *keys]).reset_index(drop=True)
    return tables
