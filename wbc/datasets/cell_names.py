"""Names that a person gave to cells of a count, in CSV or Parquet, each held against the cells that there are."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wbc.datasets.counted_cells import SIDES
from wbc.taxonomy import Taxonomy, label_matrix

COLUMNS = ("slide_id", "field", "cell_id", "cell_type")
NUMBER, COUNTED_AS = ASKED = ("number", "predicted_type")  # what the table has, too, by which `wbc adapt` asks
FILLED_IN = 0.8  # of such a table's lines: where more are empty, it may be the wrong ones alone that have names
MOST_NAMED = 3
NEAR_PX = 1.0


@dataclass(frozen=True, slots=True)
class CellName:
    """A cell's name as a file has it: `where` is file and line; `box` is None where the file has none.

    `counted_as` is what the count called the cell where a table of `wbc adapt`, filled in for the most part, asked for
    its name, else "": such a table asks for so many of each type, whether right or wrong; nothing tells by what cells
    were chosen elsewhere.
    """

    where: str
    slide_id: str
    field: str
    cell_id: str
    cell_type: str
    box: tuple[float, ...] | None = None
    counted_as: str = ""


def read_cell_names(path: Path) -> list[CellName]:
    """The names in a CSV (comma, semicolon or tab) or Parquet with columns slide_id, field, cell_id, cell_type.

    Rows without a cell_type are skipped; capitals and spaces in it are forgiven. Where there are x0 y0 x1 y1 they tell
    the cell, whatever its number is by now. Raises ValueError, naming file and line, for what is no such file.
    """
    try:
        rows = list(_parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    names = [_name(where, row) for where, row in rows if _word(row["cell_type"])]
    return names if len(names) >= FILLED_IN * len(rows) else [replace(name, counted_as="") for name in names]


def match(names: Sequence[CellName], cells: pd.DataFrame) -> pd.DataFrame:
    """The rows of `cells` that have names, once each, with their names as `name`, and `counted_as` as above.

    Raises ValueError, naming file and line, where there is no such cell, or one has two names.
    """
    by_field = {key: group for key, group in cells.groupby(["slide_id", "field"])}
    found: dict[int, CellName] = {}
    refused: list[str] = []
    for name in names:
        row = _row_of(name, by_field.get((name.slide_id, name.field)))
        if row is None:
            refused.append(
                f"{name.where}: the count has no cell {name.cell_id} in field {name.field!r} of slide {name.slide_id!r}"
                + (" where the file says" if name.box else "")
            )
        elif row in found and found[row].cell_type != name.cell_type:
            refused.append(f"{name.where}: cell {name.cell_id} is {found[row].cell_type} in {found[row].where}")
        else:
            found[row] = name
    refuse(refused)
    names_of = {"name": [n.cell_type for n in found.values()], "counted_as": [n.counted_as for n in found.values()]}
    return cells.loc[list(found)].assign(**names_of).reset_index(drop=True)


def check_names(names: Iterable[CellName], taxonomy: Taxonomy, classes: Sequence[str]) -> None:
    """Raises ValueError, naming file and line, for names that the taxonomy does not know or no class stands for."""
    refuse([f"{name.where}: {why}" for name in names if (why := _wrong(name.cell_type, taxonomy, classes))])


def refuse(reasons: Sequence[str]) -> None:
    """Raises ValueError with the first of the reasons, and how many more there are, if there is any."""
    if reasons:
        more = len(reasons) - MOST_NAMED
        raise ValueError("; ".join(reasons[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else ""))


def _wrong(cell_type: str, taxonomy: Taxonomy, classes: Sequence[str]) -> str | None:
    if not taxonomy.knows(cell_type):
        return f"{cell_type!r} is no cell type of the taxonomy {taxonomy.name}; leave empty what is not to be named"
    if not any(taxonomy.is_a(own, cell_type) for own in classes):
        return f"the classifier has no class for {cell_type!r}: it knows {', '.join(classes)}"
    return None


def covers(names: Sequence[str], taxonomy: Taxonomy, classes: Sequence[str]) -> Any:
    """Which classes each name covers: bool (N,C). Raises ValueError where a name covers none."""
    kinds = sorted(set(names))
    matrix = label_matrix(taxonomy, classes, kinds) > 0
    return matrix[[kinds.index(name) for name in names]].reshape(len(names), len(classes))


def _row_of(name: CellName, cells: pd.DataFrame | None) -> int | None:
    """The row of a cell: by its box, where the file tells it, else by its number."""
    if cells is None:
        return None
    if name.box is not None:
        away = np.abs(cells[SIDES].to_numpy(float) - name.box).max(1)
        return int(cells.index[away.argmin()]) if away.min() <= NEAR_PX else None
    same = cells.index[cells["cell_id"].astype(str) == name.cell_id]
    return int(same[0]) if len(same) else None


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8: save it as CSV in UTF-8") from error
    first = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    _check_columns(path, reader.fieldnames or ())
    try:
        for row in reader:
            yield f"{path}: line {reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no Parquet file ({error})") from error
    _check_columns(path, table.columns)
    for i, row in enumerate(table.to_dict("records"), 1):
        yield f"{path}: row {i}", {str(key): value for key, value in row.items()}


def _check_columns(path: Path, columns: Iterable[str]) -> None:
    if missing := [name for name in COLUMNS if name not in set(columns)]:
        raise ValueError(f"{path}: has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")


def _name(where: str, row: dict[str, Any]) -> CellName:
    texts = [_text(row[column]) for column in COLUMNS[:3]]
    number = _number(where, "cell_id", texts[2], int)
    box = None
    if all(side in row for side in SIDES):
        box = tuple(_number(where, side, _text(row[side]), float) for side in SIDES)
    counted_as = _word(row[COUNTED_AS]) if all(column in row for column in ASKED) else ""
    return CellName(where, texts[0], texts[1], str(number), _word(row["cell_type"]), box, counted_as)


def _number(where: str, column: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{where}: {column} is {text!r}, no number") from None


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is not itself


def _word(value: object) -> str:
    """A cell type as a person writes it, "Segmented neutrophil", as taxonomies have it."""
    return "_".join(_text(value).lower().split())
