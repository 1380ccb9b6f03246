"""What a count left in OUT, to be compared with another."""

from io import BytesIO

import pandas as pd
from upath import UPath


def read_tables(out: UPath) -> dict[str, pd.DataFrame]:
    """A count's three tables, sorted, without what differs from run to run: when it was made and how long it took."""
    tables = {}
    for name, keys in (("cells", ["cell_id"]), ("differentials", ["cell_type"]), ("slides", [])):
        files = sorted((out / name).glob("*.parquet"), key=lambda path: path.name)
        parts = [pd.read_parquet(BytesIO(file.read_bytes())) for file in files]
        table = pd.concat(parts).drop(columns=["counted_at", "seconds"], errors="ignore")
        tables[name] = table.sort_values(["slide_id", *keys]).reset_index(drop=True)
    return tables
