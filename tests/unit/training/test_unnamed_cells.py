"""Which cells of a count teach a classifier though nobody named them."""

import pandas as pd
import pytest

from wbc.training.teaching import MOST_UNNAMED, unnamed_cells

KEY = ["slide_id", "field", "cell_id"]


def counted(fields: int, per_field: int, kind: str = "lymphocyte") -> pd.DataFrame:
    rows = [("s1", f"f{i:04d}.png", i * per_field + k, kind, 0.9) for i in range(fields) for k in range(per_field)]
    return pd.DataFrame(rows, columns=[*KEY, "cell_type", "type_score"])


def test_named_ones_red_cells_and_what_is_no_white_cell_are_left_out() -> None:
    cells = counted(3, 4)
    cells.loc[1, ["cell_type", "type_score"]] = ["rbc", None]
    cells.loc[2, "cell_type"] = "not_a_white_cell"
    cells.loc[3, ["cell_type", "type_score"]] = ["unidentified", None]
    named = cells.iloc[[0, 5]]
    assert unnamed_cells(named, cells)["cell_id"].tolist() == [3, 4, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("fields", [100, 101, 149, 240, 1000])
def test_of_many_some_are_taken_from_all_over(fields: int) -> None:
    cells = counted(fields, 5)
    others = unnamed_cells(cells.iloc[:0], cells)
    assert MOST_UNNAMED / 2 <= len(others) <= MOST_UNNAMED
    assert others.groupby("field").size().eq(5).all()
    taken = others["field"].str[1:5].astype(int)
    assert taken.max() > 0.9 * fields - 5
    gaps = taken.drop_duplicates().diff().dropna()
    assert gaps.min() == gaps.max()


def test_where_all_are_named_none_is_left() -> None:
    cells = counted(2, 3)
    assert unnamed_cells(cells, cells).empty
