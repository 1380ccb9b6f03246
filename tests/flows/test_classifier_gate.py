"""Classifiers before the gate, by `retrain`: one that has learnt takes over, one that learnt wrong names does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from painted import paint
from PIL import Image
from small_trainings import configs
from upath import UPath

from flows.retrain import retrain
from wbc.datasets.annotation_store import AnnotationStore
from wbc.datasets.coco import write_coco
from wbc.datasets.labels import LabelledPicture
from wbc.models import versions
from wbc.training.orders import Order, fulfil, settle

pytestmark = [pytest.mark.usefixtures("prefect_server", "mlflow_file"), pytest.mark.timeout(600)]
CHAMPION = "models:/wbc-classifier@champion"
RADIUS_PX = {"lymphocyte": 12, "monocyte": 30}
OTHER = {"lymphocyte": "monocyte", "monocyte": "lymphocyte"}
FROZEN = """
[[measure]]
set = "painted"
format = "coco"
images = "frozen"
annotations = "frozen/coco.json"
um_per_px = 0.2
"""


def smears(folder: Path, n: int, seed: int) -> list[LabelledPicture]:
    """Pictures of two small lymphocytes and two large monocytes each, no two cells alike."""
    folder.mkdir(parents=True)
    labelled = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        labels = ("lymphocyte", "monocyte") * 2
        discs = [(45 + 80 * k, 60 + int(rng.integers(30)), RADIUS_PX[kind]) for k, kind in enumerate(labels)]
        cloud = Image.fromarray(rng.integers(0, 60, (15, 34)).astype(np.uint8)).resize((340, 150))
        pixels = paint(150, 340, discs) + rng.integers(-12, 13, (150, 340, 3)) - np.asarray(cloud, int)[..., None]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
        boxes = np.array([(x - r, y - r, x + r + 1, y + r + 1) for x, y, r in discs], np.float32)
        labelled.append(LabelledPicture(folder / f"{i}.png", boxes, labels))
    return labelled


def add(folder: Path, tray: list[LabelledPicture]) -> None:
    AnnotationStore(UPath(folder / "store")).add(tray, by="ada", source="painted")


def learn(folder: Path, steps: int, start: str = "") -> Path:
    """The config of a training that may take so many steps."""
    _, config = configs(folder, steps=steps, start=start)
    text = config.read_text().replace("batch = 4", "batch = 16\nrate = 3e-3")
    config.write_text(text.replace("checkpoint_every = 2", "checkpoint_every = 20"))
    return config


def test_a_better_classifier_is_promoted_and_a_poisoned_one_is_not(tmp_path: Path) -> None:
    frozen = smears(tmp_path / "frozen", 8, seed=9)
    write_coco(tmp_path / "frozen" / "coco.json", frozen, tmp_path / "frozen")
    (tmp_path / "frozen.toml").write_text(FROZEN)
    add(tmp_path, smears(tmp_path / "first", 2, seed=1))
    ignorant = fulfil(settle(Order("classifier", learn(tmp_path, 1), tmp_path, tmp_path / "runs", device="cpu")))
    versions.promote(f"models:/wbc-classifier/{versions.register(ignorant.folder, 'wbc-classifier')}")

    own = {"frozen": str(tmp_path / "frozen.toml"), "device": "cpu"}
    add(tmp_path, smears(tmp_path / "second", 8, seed=2))
    (better,) = retrain(str(tmp_path), str(tmp_path / "runs"), classifier=str(learn(tmp_path, 60)), **own)
    decision = versions.decision_of(versions.version_of(better))
    assert decision["promoted"], decision
    assert decision["main"] == "mean_recall"
    assert decision["challenger_main"] > 0.9
    assert versions.version_of(CHAMPION).reference == better

    mixed_up = [replace(p, labels=tuple(OTHER[k] for k in p.labels)) for p in smears(tmp_path / "third", 24, seed=3)]
    add(tmp_path, mixed_up)
    config = learn(tmp_path, 60, CHAMPION)
    (poisoned,) = retrain(str(tmp_path), str(tmp_path / "runs"), classifier=str(config), **own)
    decision = versions.decision_of(versions.version_of(poisoned))
    assert not decision["promoted"], decision
    assert set(decision["fell"]) <= {"lymphocyte of painted", "monocyte of painted"}
    assert decision["fell"]
    assert versions.version_of(poisoned).aliases == ("challenger",)
    assert versions.version_of(CHAMPION).reference == better
