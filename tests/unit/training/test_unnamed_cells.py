"""Which cells of a count teach a classifier though nobody named them."""

import pandas as pd

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


def test_of_many_as_many_of_each_type_are_taken_from_all_over() -> None:
    cells = counted(400, 5)
    cells.loc[::5, "cell_type"] = "monocyte"
    cells.loc[::100, "cell_type"] = "basophil"
    others = unnamed_cells(cells.iloc[:0], cells)
    assert others["cell_type"].value_counts().to_dict() == {"lymphocyte": 240, "monocyte": 240, "basophil": 20}
    assert len(others) == MOST_UNNAMED
    assert others["cell_id"].is_monotonic_increasing
    quarters = (others["field"].str[1:5].astype(int) // 100).value_counts()
    assert quarters.min() > MOST_UNNAMED / 6
    pd.testing.assert_frame_equal(others, unnamed_cells(cells.iloc[:0], cells))


def test_where_all_are_named_none_is_left() -> None:
    cells = counted(2, 3)
    assert unnamed_cells(cells, cells).empty
