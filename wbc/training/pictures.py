"""What a training looks like: its curves, and what its model says of some pictures beside the truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wbc.cells.detect import detect
from wbc.cells.tiles import TileSettings
from wbc.datasets.labels import opened
from wbc.models import registry
from wbc.models.registry import LoadedModel
from wbc.training.classifier_data import read_crops
from wbc.training.detector_data import of_one_scale, read_boxes
from wbc.training.measure import count_windows, crop_probabilities
from wbc.training.progress import Curves

if TYPE_CHECKING:
    from wbc.training.classifier import ClassifierConfig
    from wbc.training.detector import DetectorConfig

CURVES_PICTURE, PREDICTIONS_PICTURE = "curves.png", "predictions.png"
PICTURES, CELLS, COLUMNS = 4, 32, 8
SIDE_PX, CELL_PX, TEXT_PX = 480, 112, 14
SHOWN_SCORE = 0.5
COLOURS = ("#c03030", "#b08000", "#2040d0", "#108040", "#a020a0", "#208090")
SMOOTH = 20  # steps


def draw_curves(curves: Curves, path: Path) -> None:
    """A PNG of the loss, its terms smoothed, and of the figures that were watched. Raises OSError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7 if curves.figures else 4), layout="constrained")
    axes: Any = figure.subplots(2 if curves.figures else 1, squeeze=False)[:, 0]
    for name, values in [*curves.losses.items(), ("loss", curves.total_loss)]:
        axes[0].plot(range(1, len(values) + 1), _smoothed(values), label=name, linewidth=2 if name == "loss" else 1)
    for name, pairs in curves.figures.items():
        axes[1].plot(*zip(*pairs, strict=True), marker="o", label=name)
    for ax, what in zip(axes, ("loss", "figures"), strict=False):
        ax.set(xlabel="step", ylabel=what)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def _smoothed(values: Sequence[float]) -> NDArray[np.float64]:
    """Each value as the mean of the last SMOOTH, itself included."""
    sums = np.cumsum([0.0, *values])
    i = np.arange(1, len(values) + 1)
    first = np.maximum(0, i - SMOOTH)
    return np.asarray((sums[i] - sums[first]) / (i - first))


def draw_predictions(plan: "DetectorConfig | ClassifierConfig", data: Path, folder: Path, device: str) -> None:
    """A PNG of what the model in `folder` says of some pictures beside the truth: of what its plan measures or watches.

    Where it does neither, of what it has learnt from. Raises OSError, and ValueError as the data's readers do.
    """
    card = registry.read_card(str(folder))
    loaded = registry.load(registry.resolve(str(folder), card.task)[0], device)
    specs: Any = plan.measure or plan.watch or plan.data
    draw = _draw_boxes if card.task == "detector" else _draw_names
    draw(specs[0], data, loaded).save(folder / PREDICTIONS_PICTURE)


def _draw_boxes(spec: Any, data: Path, loaded: LoadedModel) -> Image.Image:
    """Some pictures, a row each: the truth at the left, what the detector finds at the right."""
    rows = []
    for scale, pictures in of_one_scale(read_boxes(spec, data)[:PICTURES], spec.um_per_px).items():
        for picture in pictures:
            with opened(picture.path) as file:
                pixels = np.asarray(file.convert("RGB"))
            (found,) = detect([pixels], loaded, scale, SHOWN_SCORE, TileSettings())
            names = [loaded.card.classes[label - 1] for label in found.labels]
            words = [f"{name} {score:.2f}" for name, score in zip(names, found.scores, strict=True)]
            both = [(picture.boxes, picture.labels, picture.labels), (found.boxes, names, words)]
            rows.append([_framed(pixels, *part, loaded.card.classes) for part in both])
    sheet = Image.new("RGB", (2 * SIDE_PX, sum(row[0].height for row in rows) or 1), "white")
    y = 0
    for row in rows:
        for column, picture_ in enumerate(row):
            sheet.paste(picture_, (column * SIDE_PX, y))
        y += row[0].height
    return sheet


def _framed(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    names: Sequence[str],
    words: Sequence[str],
    classes: Sequence[str],
) -> Image.Image:
    """A picture scaled to SIDE_PX wide, with boxes in their classes' colours."""
    factor = SIDE_PX / pixels.shape[1]
    picture = Image.fromarray(pixels).resize((SIDE_PX, max(1, round(pixels.shape[0] * factor))))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_PX - 4)
    for box, name, word in zip((boxes * factor).tolist(), names, words, strict=True):
        colour = COLOURS[classes.index(name) % len(COLOURS)] if name in classes else "black"
        draw.rectangle(box, outline=colour, width=2)
        if name not in ("rbc", "platelet"):
            draw.text((box[0], box[1] - TEXT_PX), word, colour, font)
    return picture


def _draw_names(spec: Any, data: Path, loaded: LoadedModel) -> Image.Image:
    """Some cells, as evenly from the data set as can be: each with its true name above, what it is called below."""
    crops = read_crops(spec, data)
    chosen = np.unique(np.linspace(0, len(crops.labels) - 1, CELLS).astype(int))
    windows = count_windows(crops, loaded.card)[chosen]
    answers = crop_probabilities(crops, loaded)[chosen]
    high = CELL_PX + 2 * TEXT_PX + 6
    sheet = Image.new("RGB", (COLUMNS * (CELL_PX + 4), -(-len(chosen) // COLUMNS) * high), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX - 4)
    for i, (cell, window, chances) in enumerate(zip(chosen, windows, answers, strict=True)):
        x, y = i % COLUMNS * (CELL_PX + 4), i // COLUMNS * high
        called, true = loaded.card.classes[int(chances.argmax())], crops.labels[cell]
        sheet.paste(Image.fromarray(window).resize((CELL_PX, CELL_PX)), (x, y + TEXT_PX))
        draw.text((x, y), true, "black", font)
        draw.text(
            (x, y + TEXT_PX + CELL_PX), f"{called} {chances.max():.2f}", "green" if called == true else "red", font
        )
    return sheet
