"""`wbc train` from a config and a folder of data to a model that counts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wbc.models import registry
from wbc.revision import code_revision
from wbc.synth.smear import SmearSettings, render_slides
from wbc.training.recipes import train_classifier, train_detector

KINDS = ["segmented_neutrophil", "band_neutrophil", "lymphocyte"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small rendered fields with truth, and a table of single cells painted one colour a kind."""
    root = tmp_path_factory.mktemp("data")
    render_slides(root / "smears", 1, 2, 3, SmearSettings(height_px=400, width_px=500))
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        kind = KINDS[i % 3]
        pixels = np.full((224, 224, 3), 230, np.uint8)
        pixels[60:164, 60:164] = np.eye(3, dtype=np.uint8)[i % 3] * 160 + rng.integers(0, 40, (104, 104, 3), np.uint8)
        path = root / "cell.jpg"
        Image.fromarray(pixels).save(path)
        rows.append({"split": "train", "kind": kind, "file": f"{i}.jpg", "jpeg": path.read_bytes()})
    pd.DataFrame(rows).to_parquet(root / "cells.parquet")
    return root


def detector_config(path: Path, names: dict[str, str], steps: int = 2) -> Path:
    table = json.dumps(names).replace(": ", " = ").replace('" = ', '" = ')
    path.write_text(f"""
classes = ["rbc", "platelet", "wbc"]
builder = "faster_rcnn"
um_per_px = 0.2
frozen = ["conv_stem", "bn1", "blocks.0."]
credits = ["rendered"]
[model]
backbone = "tf_efficientnet_lite0"
pyramid_channels = 16
head_width = 16
[loop]
steps = {steps}
batch = 1
data_workers = 0
[mosaic]
size_px = 128
[calibrate]
pictures = 2
[[data]]
format = "coco"
images = "smears"
annotations = "smears/truth_coco.json"
names = {table}
weight = 1.0
[[measure]]
set = "smears"
format = "coco"
images = "smears"
annotations = "smears/truth_coco.json"
keep = "slide-01/field-01.jpg"
names = {table}
""")
    return path


@pytest.fixture(scope="module")
def names(data: Path) -> dict[str, str]:
    truth = json.loads((data / "smears/truth_coco.json").read_text())
    return {c["name"]: c["name"] if c["name"] in ("rbc", "platelet") else "wbc" for c in truth["categories"]}


def test_a_trained_detector_has_a_card_with_its_figures_and_resumes(
    data: Path, names: dict[str, str], tmp_path: Path
) -> None:
    config = detector_config(tmp_path / "detector.toml", names)
    card = train_detector(config, data, tmp_path / "model", "cpu")
    assert (card.task, card.credits) == ("detector", ("rendered",))
    assert card.code_revision == code_revision()
    assert {"smears AP", "smears AP50", "smears AP50_wbc"} <= set(card.metrics)
    ref, saved = registry.resolve(str(tmp_path / "model"), "detector")
    assert saved == card
    again = train_detector(config, data, tmp_path / "model", "cpu")  # nothing is left to do: the same weights
    assert again.sha256 == ref.sha256


def test_a_classifier_learns_from_coarse_labels_too(data: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(data / "cells.parquet")
    table.loc[table.index[:3], "kind"] = "neutrophil"
    table.to_parquet(data / "coarse.parquet")
    config = tmp_path / "classifier.toml"
    config.write_text("""
classes = ["segmented_neutrophil", "band_neutrophil", "lymphocyte"]
builder = "crop_classifier"
taxonomy = "blood"
threshold = 0.4
[model]
backbone = "tf_efficientnet_lite0"
[crop]
input_px = 64
um_per_px = 0.32
[loop]
steps = 2
batch = 4
data_workers = 0
slow = []
[[data]]
format = "crops"
table = "coarse.parquet"
splits = ["train"]
um_per_px = 0.1
weight = 1.0
[[measure]]
set = "cells"
format = "crops"
table = "cells.parquet"
splits = ["train"]
um_per_px = 0.1
""")
    card = train_classifier(config, data, tmp_path / "model", "cpu")
    assert (card.input_px, card.threshold) == (64, 0.4)
    assert 0 <= card.metrics["cells accuracy"] <= 1
    assert registry.resolve(str(tmp_path / "model"), "classifier")[1] == card


def test_a_config_that_nobody_understands_is_named(data: Path, names: dict[str, str], tmp_path: Path) -> None:
    config = detector_config(tmp_path / "detector.toml", names)
    config.write_text(config.read_text().replace("[mosaic]", "[mosaics]"))
    with pytest.raises(ValueError, match=r"detector\.toml: unknown \['mosaics'\]"):
        train_detector(config, data, tmp_path / "model", "cpu")
    config = detector_config(tmp_path / "detector.toml", names)
    config.write_text(config.read_text().replace("size_px", "side_px"))
    with pytest.raises(ValueError, match=r"\[mosaic\].*side_px"):
        train_detector(config, data, tmp_path / "model", "cpu")
