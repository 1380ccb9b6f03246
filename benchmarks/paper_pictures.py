"""The pictures of `docs/papers.md`: confusion matrices, curves, hues, and detectors side by side."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.common import labelled_slide, pixels_of
from wbc.cells.detect import detect
from wbc.cells.hue import adjust_hue
from wbc.models import registry
from wbc.training.classifier_data import CropTable, read_crops

SMOOTH = 15  # steps
CUT_PX, SHOWN_PX = 1000, 330  # of a field's middle; of each picture beside the others
SLIDE, SHOWN_SCORE = "slide-05", 0.5
HUE = (125.0, 155.0)
CELLS = 8
COLOURS = ("#c03030", "#2040d0", "#108040")


def draw_confusion(matrix: NDArray[np.int64], classes: Sequence[str], title: str, path: Path) -> None:
    """A confusion matrix (true, named), each row in percent of its true kind, as Varra's Figures 7 and 8."""
    from matplotlib.figure import Figure  # of the training extra

    shares = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = 1.6 + 0.42 * len(classes)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes: Any = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [name.replace("_", "\n") for name in classes]
    axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(classes)), names, fontsize=7)
    axes.set_xlabel("named", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    axes.set_title(title, fontsize=9)
    for (true, named), share in np.ndenumerate(shares):
        if share >= 0.5:
            axes.text(named, true, f"{share:.0f}", ha="center", va="center", fontsize=7, color=_ink(share))
    figure.savefig(path, dpi=80)


def _ink(share: float) -> str:
    return "white" if share > 60 else "black"


def draw_losses(runs: Mapping[str, Sequence[Path]], path: Path) -> None:
    """The loss of every run at every step, smoothed, of the `curves.csv` that it wrote; nothing where none has."""
    from matplotlib.figure import Figure  # of the training extra

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.subplots()
    for label, files in runs.items():
        for file in files[:1]:
            values = losses_of(file)
            kernel = np.ones(min(SMOOTH, len(values))) / min(SMOOTH, len(values))
            axes.plot(np.convolve(values, kernel, "valid"), label=label, linewidth=1)
    if not axes.lines:
        return
    axes.set_xlabel("step")
    axes.set_ylabel("loss, smoothed")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=80)


def losses_of(file: Path) -> list[float]:
    """The sum of a run's losses at each step."""
    totals: dict[int, float] = {}
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            if line["what"] == "loss":
                totals[int(line["step"])] = totals.get(int(line["step"]), 0.0) + float(line["value"])
    return [totals[step] for step in sorted(totals)]


def watched(file: Path) -> list[dict[str, Any]]:
    """What a run measured while it learnt: name, step and value of each figure."""
    with file.open(newline="") as lines:
        read = [line for line in csv.DictReader(lines) if line["what"] == "figure"]
    return [{"figure": line["curve"], "step": int(line["step"]), "value": float(line["value"])} for line in read]


def draw_hues(data: Path, path: Path) -> None:
    """Cells before and after the hue adjustment, as ASAE-Net's Figure 5, of the validation split."""
    crops = read_crops(CropTable("pbc_cells.parquet", ("val",), 0.1018), data).pixels
    shown = crops[:: max(1, len(crops) // CELLS)][:CELLS]
    rows = [np.concatenate(list(row), 1) for row in (shown, adjust_hue(shown, HUE))]
    sheet = Image.fromarray(np.concatenate(rows))
    sheet.resize((sheet.width // 2, sheet.height // 2)).save(path, quality=80, optimize=True)


def draw_detectors(data: Path, folder: Path, path: Path) -> None:
    """The middle of a test field with the boxes of each trained detector side by side, as Wang's Figure 8."""
    runs = sorted(run for run in folder.glob("wang2021_*-seed-0") if (run / registry.CARD).exists())
    if not runs:
        return
    pictures, um_per_px = labelled_slide(data, SLIDE)
    field = pixels_of(pictures[:1])[0]
    panels = [_panel(field, run, um_per_px) for run in runs]
    sheet = Image.new("RGB", (SHOWN_PX * len(panels), SHOWN_PX + 14), "white")
    for place, (panel, run) in enumerate(zip(panels, runs, strict=True)):
        sheet.paste(panel, (place * SHOWN_PX, 14))
        name = run.name.removeprefix("wang2021_").split("-")[0]
        ImageDraw.Draw(sheet).text((place * SHOWN_PX + 4, 1), name, fill="black")
    sheet.save(path, quality=78, optimize=True)


def _panel(field: NDArray[np.uint8], run: Path, um_per_px: float) -> Image.Image:
    model = registry.load(registry.resolve(str(run), "detector")[0], "cpu")
    (found,) = detect([field], model, um_per_px, SHOWN_SCORE)
    picture = Image.fromarray(field)
    pen = ImageDraw.Draw(picture)
    for box, label in zip(found.boxes, found.labels, strict=True):
        pen.rectangle([float(v) for v in box], outline=COLOURS[(int(label) - 1) % len(COLOURS)], width=5)
    left, top = (picture.width - CUT_PX) // 2, (picture.height - CUT_PX) // 2
    return picture.crop((left, top, left + CUT_PX, top + CUT_PX)).resize((SHOWN_PX, SHOWN_PX))
