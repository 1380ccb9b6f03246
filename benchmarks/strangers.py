"""How well a classifier's recipe names the cells of a laboratory that it has never seen: each is left out in turn.

The recipe of a config is trained without one of its data sets and measured on that one; a set that nothing trains on is
named by a model of all the others. What is measured here is what choices are made by; no test split is read.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Claim, Report, Row, parser, show
from wbc.configs import read_toml
from wbc.datasets.crops import Crops
from wbc.models import registry
from wbc.taxonomy import Taxonomy, label_matrix, load_taxonomy
from wbc.training.classifier import ClassifierConfig, train_as_planned
from wbc.training.classifier_data import CellPictures, CropData, read_crops
from wbc.training.measure import crop_probabilities

COMMON = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")
BAR_MEAN, BAR_WORST = 0.87, 0.78
SURE = 0.7
# Its scale is assumed from its cells' sizes: see benchmarks/accuracy.py. Nothing is trained on it.
TECOM = CellPictures("tecom_wbc/images", "tecom_wbc/labels.csv", 0.18, set="tecom")


@dataclass(frozen=True, slots=True)
class Names:
    """What a model makes of a laboratory's cells: labels (N), class probabilities (N,C), which classes are right."""

    labels: tuple[str, ...]
    chances: NDArray[np.float32]
    right: NDArray[np.bool_]

    @property
    def named_right(self) -> NDArray[np.bool_]:
        """Whether the likeliest class is the label or lies below it (N,)."""
        return np.asarray(self.right[np.arange(len(self.labels)), self.chances.argmax(1)])


def names_of(crops: Crops, model: Path, taxonomy: Taxonomy, device: str) -> Names:
    """The names that a saved model gives to single cells."""
    ref, card = registry.resolve(str(model), "classifier")
    labels = sorted(set(crops.labels))
    covered = label_matrix(taxonomy, card.classes, labels)
    right = np.array([covered[labels.index(label)] for label in crops.labels], bool)
    return Names(crops.labels, crop_probabilities(crops, registry.load(ref, device)), right)


def figures(names: Names, classes: Sequence[str], taxonomy: Taxonomy) -> Row:
    """Right among the five common kinds, right of all, recall of each kind, and what the scores are worth."""
    kinds = [next((k for k in COMMON if taxonomy.is_a(label, k)), "") for label in names.labels]
    common = np.array([kind != "" for kind in kinds])
    five = names.chances @ label_matrix(taxonomy, classes, COMMON).T
    answers = np.array(COMMON, object)[five.argmax(1)]
    hits = answers == np.array(kinds, object)
    right, scores = names.named_right, names.chances.max(1)
    recall = {k: float(hits[[kind == k for kind in kinds]].mean()) for k in COMMON if k in kinds}
    return {
        "cells": len(kinds),
        "of five": float(hits[common].mean()),
        "of all": float(right.mean()),
        **{k: recall.get(k, float("nan")) for k in COMMON},
        "score right": float(scores[right].mean()),
        "score wrong": float(scores[~right].mean()),
        f"wrong over {SURE}": float((~right & (scores > SURE)).mean()),
    }


def measure(config: Path, data: Path, out: Path, steps: int, only: Sequence[str], device: str) -> Report:
    """Train without each laboratory below `out`, or take what is trained there, and name that laboratory's cells."""
    plan = read_toml(config, ClassifierConfig)
    taxonomy = load_taxonomy(plan.taxonomy)
    # From ImageNet: the model that a config starts from may have seen the stranger.
    plan = replace(
        plan, start="", measure=(), may_lack=plan.classes, loop=replace(plan.loop, steps=steps or plan.loop.steps)
    )
    rows = []
    for stranger in (*plan.data, TECOM):
        if not stranger.set or (only and stranger.set not in only):
            continue  # a set without a name, as of debris, is no laboratory
        model = out / stranger.set
        if not (model / registry.CARD).is_file():
            train_as_planned(without(plan, stranger), config, data, model, device)
        names = names_of(read_crops(stranger, data), model, taxonomy, device)
        np.savez(model / "names.npz", labels=np.array(names.labels), chances=names.chances, right=names.right)
        rows.append({"left out": stranger.set, **figures(names, plan.classes, taxonomy)})
    of_five = [float(row["of five"]) for row in rows]
    claims = [
        Claim("right of five kinds, mean over laboratories", float(np.mean(of_five)), at_least=BAR_MEAN),
        Claim("right of five kinds, worst laboratory", min(of_five), at_least=BAR_WORST),
        Claim("right of all kinds, mean", float(np.mean([float(row["of all"]) for row in rows]))),
    ]
    return Report(f"Strangers: {plan.loop.steps} steps of {plan.loop.batch}", claims, {"laboratories": rows})


def without(plan: ClassifierConfig, stranger: CropData) -> ClassifierConfig:
    """The plan without one of its data sets."""
    return replace(plan, data=tuple(spec for spec in plan.data if spec is not stranger))


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--config", type=Path, default=Path("configs/classifier.toml"))
    command.add_argument("--data", type=Path, required=True, help="folder of the config's data sets and of tecom_wbc")
    command.add_argument("--out", type=Path, default=Path("runs/strangers"), help="models and names of each laboratory")
    command.add_argument("--steps", type=int, default=0, help="instead of the config's")
    command.add_argument("--only", nargs="*", default=[], help="the laboratories to leave out, by their data's `set`")
    command.add_argument("--device", default="auto")
    chosen = command.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    device = registry.resolve_device(chosen.device)
    report = measure(chosen.config, chosen.data, chosen.out, chosen.steps, chosen.only, device)
    show(report, as_json=chosen.json)


if __name__ == "__main__":
    main()
