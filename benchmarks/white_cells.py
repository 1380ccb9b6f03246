"""White cells alone against all cells: what is lost, cell by cell, what is gained, and how long both take, in turns.

On labelled slides and on rendered fields with few to very many white cells. A cell is found again where a box of the
other look overlaps it by half. Time is the detector's, from pixels to boxes.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import Claim, Report, Row, labelled_slide, parser, pixels_of, show
from wbc.cells.detect import detect, sought_alone
from wbc.cells.geometry import box_iou
from wbc.cells.tiles import TileSettings
from wbc.engine import Engine
from wbc.models import registry
from wbc.models.engines import ready_detector
from wbc.models.registry import LoadedModel
from wbc.synth.smear import SmearSettings, draw_stain, render_field
from wbc.types import Detections

BAR_RECALL, BAR_SECONDS = 0.995, 0.12
BAR_ALL: dict[Engine, float] = {"torch": 0.45, "openvino": 0.3}  # seconds a field of 2560×1920 px on two cores
MIN_SCORE, SAME_IOU = 0.7, 0.5
TYPICAL = "rendered, as blood"
ALL, WHITE = TileSettings(), TileSettings(sought="white")


@dataclass(frozen=True, slots=True)
class Series:
    """Fields uint8 (H,W,3) of one scale."""

    name: str
    fields: Sequence[NDArray[np.uint8]]
    um_per_px: float


def rendered(name: str, n_white: tuple[int, int], fields: int, red_cells_per_mm2: tuple[float, float]) -> Series:
    """Rendered fields of 2560×1920 px, each of a stain of its own."""
    settings = SmearSettings(um_per_px=0.105, white_cells_per_field=n_white, red_cells_per_mm2=red_cells_per_mm2)
    made = []
    for i in range(fields):
        rng = np.random.default_rng([n_white[1], i])
        made.append(render_field(settings, rng, draw_stain(rng))[0])
    return Series(name, made, settings.um_per_px)


def all_series(data: Path | None, slides: Sequence[str], densities: Sequence[int], fields: int) -> Iterator[Series]:
    """The series to look at, one after the other."""
    for slide_id in slides if data is not None else ():
        pictures, um_per_px = labelled_slide(data or Path(), slide_id)
        yield Series(slide_id, pixels_of(pictures), um_per_px)
    yield rendered(TYPICAL, (8, 14), fields, (4_000, 4_000))
    for n in densities:
        yield rendered(f"rendered, {n} white", (n, n), fields, SmearSettings().red_cells_per_mm2)


def compare(series: Series, model: LoadedModel, rounds: int) -> tuple[Row, list[str]]:
    """One series looked at both ways in turns; its row, and a line for each cell that only one look finds."""
    lost: list[str] = []
    n_all = n_again = n_more = 0
    seconds: dict[str, list[float]] = {"all": [], "white": []}
    for i, pixels in enumerate(series.fields):
        for _ in range(rounds):
            whole, spent = timed(pixels, model, series.um_per_px, ALL)
            seconds["all"].append(spent)
            white, spent = timed(pixels, model, series.um_per_px, WHITE)
            seconds["white"].append(spent)
        whole, white = sure(sought_alone(whole, model, "white")), sure(white)
        same = box_iou(whole.boxes, white.boxes) > SAME_IOU
        n_all, n_again = n_all + len(whole), n_again + int(same.any(1).sum())
        n_more += int((~same.any(0)).sum())
        lost += [f"{series.name}, field {i}: lost {_words(whole, k)}" for k in np.flatnonzero(~same.any(1))]
        lost += [f"{series.name}, field {i}: more {_words(white, k)}" for k in np.flatnonzero(~same.any(0))]
    row = {
        "fields": series.name,
        "white cells of all": n_all,
        "found again": n_again,
        "more": n_more,
        "recall": n_again / n_all if n_all else 1.0,
        "all, s a field": median(seconds["all"]),
        "white, s a field": median(seconds["white"]),
        "ratio": median(seconds["white"]) / median(seconds["all"]),
    }
    return row, lost


def timed(
    pixels: NDArray[np.uint8], model: LoadedModel, um_per_px: float, settings: TileSettings
) -> tuple[Detections, float]:
    """The cells of one field, and the seconds that finding them took."""
    began = time.perf_counter()
    (found,) = detect([pixels], model, um_per_px, 0.05, settings)
    return found, time.perf_counter() - began


def sure(cells: Detections) -> Detections:
    """Those that a count has."""
    return cells.take(cells.scores >= MIN_SCORE)


def _words(cells: Detections, k: Any) -> str:
    box = ", ".join(f"{side:.0f}" for side in cells.boxes[k])
    return f"({box}) score {cells.scores[k]:.2f}"


def report_of(rows: Sequence[Row], differences: Sequence[str], engine: Engine) -> Report:
    """All series, and the typical field's time by this engine against its bars."""
    typical = next(row for row in rows if row["fields"] == TYPICAL)
    worst = min(rows, key=lambda row: row["recall"])
    claims = [
        Claim(f"recall of white cells, worst ({worst['fields']})", worst["recall"], at_least=BAR_RECALL),
        Claim("a typical field, white cells alone", typical["white, s a field"], "s", at_most=BAR_SECONDS),
        Claim(f"all its cells, {engine}", typical["all, s a field"], "s", at_most=BAR_ALL[engine]),
    ]
    return Report("White cells alone", claims, {"Fields": rows}, differences or ["No cell differs."])


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, help="folder of labelled slides; default: rendered fields alone")
    command.add_argument("--slides", nargs="+", default=["slide-04", "slide-07"])
    command.add_argument("--densities", type=int, nargs="+", default=[5, 20, 60, 200, 1000])
    command.add_argument("--fields", type=int, default=2, help="rendered fields of each density")
    command.add_argument("--rounds", type=int, default=1)
    command.add_argument("--detector", default="bundled:detector")
    command.add_argument("--engine", choices=get_args(Engine), default="torch")
    command.add_argument("--threads", type=int)
    chosen = command.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    model = ready_detector(registry.resolve(chosen.detector, "detector")[0], "cpu", chosen.engine)
    series = all_series(chosen.data, chosen.slides, chosen.densities, chosen.fields)
    compared = [compare(one, model, chosen.rounds) for one in series]
    differences = [line for _, lines in compared for line in lines]
    show(report_of([row for row, _ in compared], differences, chosen.engine), as_json=chosen.json)


if __name__ == "__main__":
    main()
