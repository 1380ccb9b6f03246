"""An evaluation as a folder: figures.json, tables as CSV and Parquet, pictures of confusion and calibration."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.evaluation.reliability import Reliability
from wbc.evaluation.report import Evaluation
from wbc.storage.atomic import staged


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write an evaluation to `folder`; files of an earlier one are written over. Raises OSError, naming the file."""
    contents = {UPath(folder / "figures.json"): json.dumps(evaluation.to_json(), indent=1).encode()}
    for name, table in evaluation.tables.items():
        contents[UPath(folder / f"{name}.csv")] = table.to_csv(index=False).encode()
        contents[UPath(folder / f"{name}.parquet")] = table.to_parquet(index=False)
    for name, (rows, columns, matrix) in evaluation.confusions.items():
        lines = [["true", *columns], *([row, *map(str, counts)] for row, counts in zip(rows, matrix, strict=True))]
        text = "\n".join(",".join(line) for line in lines) + "\n"
        contents[UPath(folder / f"confusion-{_file(name)}.csv")] = text.encode()
        contents[UPath(folder / f"confusion-{_file(name)}.png")] = draw_confusion(name, rows, columns, matrix)
    for name, reliability in evaluation.reliabilities.items():
        contents[UPath(folder / f"reliability-{_file(name)}.png")] = draw_reliability(name, reliability)
    with staged(contents, durable=False):
        pass


def _file(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-") or "set"


def draw_confusion(name: str, rows: Sequence[str], columns: Sequence[str], matrix: NDArray[np.int64]) -> bytes:
    """A confusion as a PNG: shades are parts of a row, numbers are cells. Needs matplotlib (the training extra)."""
    from matplotlib.figure import Figure

    figure = Figure((2.5 + 0.7 * len(columns), 2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix / np.maximum(matrix.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for (y, x), n in np.ndenumerate(matrix):
        dark = n > 0.5 * max(1, matrix[y].sum())
        axes.text(x, y, str(n), ha="center", va="center", color="white" if dark else "black", fontsize=8)
    axes.set(title=name, xlabel="told", ylabel="true")
    return _png(figure)


def draw_reliability(name: str, reliability: Reliability) -> bytes:
    """Scores against the part that is right, as a PNG; below it how many cells have each score."""
    from matplotlib.figure import Figure

    figure = Figure((4.5, 5), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = len(reliability.n)
    top.plot([0, 1], [0, 1], color="grey", linewidth=1)
    top.plot(reliability.score, reliability.right, marker="o")
    top.set(title=f"{name}: ECE {reliability.ece:.3f}", ylabel="right", ylim=(0, 1))
    below.bar((np.arange(bins) + 0.5) / bins, reliability.n, width=0.9 / bins)
    below.set(xlabel="score", ylabel="cells", xlim=(0, 1))
    return _png(figure)


def _png(figure: object) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)  # type: ignore[attr-defined]
    return sink.getvalue()
