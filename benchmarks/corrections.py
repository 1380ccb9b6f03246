"""Whether a classifier learns from corrections: the 12 cells a field that it is least sure of, named by the truth.

A classifier of `pbc_cells` alone goes on with those of slides 01 to 03 and is judged by its names on slide-04, which
neither has seen. What was trained already is not trained again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from benchmarks.common import Claim, Report, parser, show
from wbc.datasets.annotation_store import AnnotationStore
from wbc.datasets.coco import read_coco
from wbc.datasets.crops import Crops, cut_named_cells
from wbc.datasets.labels import LabelledPicture, red_cell_um_per_px
from wbc.models import registry
from wbc.models.registry import LoadedModel
from wbc.taxonomy import label_matrix, load_taxonomy
from wbc.training.classifier import train_classifier
from wbc.training.measure import crop_probabilities

KINDS = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
CORRECTED_A_FIELD = 12
CONFIG = """
classes = ["promyelocyte", "myelocyte", "metamyelocyte", "band_neutrophil", "segmented_neutrophil", "eosinophil",
    "basophil", "lymphocyte", "monocyte", "erythroblast"]
builder = "crop_classifier"
taxonomy = "blood"
start = "{start}"
frozen = ["conv_stem", "bn1", "blocks.0", "blocks.1"]
[model]
[crop]
input_px = 96
um_per_px = 0.2133
even_light = true
[loop]
steps = {steps}
batch = 48
rate = {rate}
weight_decay = 0.03
warm_up = {warm_up}
average = {average}
decay = 0.5
slow = []
data_workers = 0
[jitter]
[[data]]
format = "crops"
table = "pbc_cells.parquet"
splits = ["train"]
leave_out = ["platelet"]
um_per_px = 0.1018
weight = 0.6
"""
STORE = '[[data]]\nformat = "store"\nstore = "{store}"\nweight = 0.4\n'


def sure_cells(data: Path, slides: Sequence[str]) -> tuple[list[LabelledPicture], float]:
    """The white cells with a sure kind of some slides' fields, by their truth, and the µm per px."""
    pictures = read_coco(data / "slides", data / "slides/truth_coco.json", None)
    scale, kept = red_cell_um_per_px(pictures), []
    for p in pictures:
        sure = [i for i, label in enumerate(p.labels) if label in KINDS]
        if p.path.parent.name in slides and sure:
            kept.append(LabelledPicture(p.path, p.boxes[sure], tuple(p.labels[i] for i in sure), scale))
    return kept, scale


def crops_of(pictures: Sequence[LabelledPicture], scale: float) -> Crops:
    """All their cells."""
    return cut_named_cells(pictures, lambda label: label in KINDS, scale)


def doubtful(pictures: Sequence[LabelledPicture], scale: float, model: LoadedModel) -> list[LabelledPicture]:
    """Of each field the cells that the model is least sure of."""
    chosen = []
    for p in pictures:
        least = np.argsort(crop_probabilities(crops_of([p], scale), model).max(1), kind="stable")[:CORRECTED_A_FIELD]
        chosen.append(LabelledPicture(p.path, p.boxes[least], tuple(p.labels[i] for i in least), scale))
    return chosen


def loaded(folder: Path) -> LoadedModel:
    """The classifier in a folder."""
    return registry.load(registry.resolve(str(folder), "classifier")[0], "cpu")


def right(folder: Path, crops: Crops) -> NDArray[np.bool_]:
    """Whether each cell gets its own of the five kinds."""
    model = loaded(folder)
    five = crop_probabilities(crops, model) @ label_matrix(load_taxonomy("blood"), model.card.classes, KINDS).T
    return np.array([KINDS[i] for i in five.argmax(1)]) == np.array(crops.labels)


def measured(data: Path, out: Path) -> Report:
    """Train twice, and compare the names on slide-04."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "before.toml").write_text(CONFIG.format(start="", steps=260, rate="8e-4", warm_up=30, average=0.97))
    train_classifier(out / "before.toml", data, out / "before", "cpu")
    pictures, scale = sure_cells(data, ("slide-01", "slide-02", "slide-03"))
    store = AnnotationStore(UPath(out / "store"))
    if not store.shards():
        store.add(doubtful(pictures, scale, loaded(out / "before")), by="benchmark", source="truth")
    text = CONFIG.format(start=out / "before", steps=60, rate="5e-4", warm_up=8, average=0.95)
    (out / "after.toml").write_text(text + STORE.format(store=store.path))
    train_classifier(out / "after.toml", data, out / "after", "cpu")
    crops = crops_of(*sure_cells(data, ("slide-04",)))
    names = {name: right(out / name, crops) for name in ("before", "after")}
    change = names["after"].astype(float) - names["before"]
    drawn = change[np.random.default_rng(0).integers(len(change), size=(5000, len(change)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    labels = np.array(crops.labels)
    rows = [
        {"kind": kind, "cells": int((labels == kind).sum())}
        | {name: float(told[labels == kind].mean()) for name, told in names.items()}
        for kind in KINDS
        if (labels == kind).any()
    ]
    claims = [Claim("more names right on slide-04", float(change.mean())), Claim("its lower limit", low, at_least=1e-9)]
    return Report("Learning from corrections", claims, {"slide-04": rows}, [f"The upper limit is {high:+.3f}."])


def main() -> None:
    """Measure and print."""
    options = parser(__doc__ or "")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True, help="where store and models are kept")
    given = options.parse_args()
    show(measured(given.data.absolute(), given.out.absolute()), as_json=given.json)


if __name__ == "__main__":
    main()
