"""Trainings that take seconds: tiny models on painted pictures, added to an annotation store."""

from pathlib import Path

import numpy as np
from painted import paint
from PIL import Image
from upath import UPath

from wbc.datasets.annotation_store import AnnotationStore
from wbc.datasets.labels import LabelledPicture

DETECTOR = """
classes = ["rbc", "wbc"]
builder = "faster_rcnn"
um_per_px = 0.2
imagenet = false
start = "{start}"
[model]
backbone = "test_efficientnet"
pyramid_channels = 32
head_width = 64
lowest_objectness = 0.02
[loop]
steps = {steps}
batch = 1
warm_up = 2
checkpoint_every = 2
average = 0.5
watch_every = 2
[mosaic]
size_px = 128
[jitter]
plain = 1.0
[calibrate]
pictures = 1
[[data]]
format = "store"
store = "store"
um_per_px = 0.2
[[watch]]
set = "held out"
format = "store"
store = "held-out"
um_per_px = 0.2
"""
CLASSIFIER = """
classes = ["lymphocyte", "monocyte"]
builder = "crop_classifier"
taxonomy = "blood"
imagenet = false
start = "{start}"
[model]
backbone = "test_efficientnet"
[crop]
input_px = 32
um_per_px = 0.8
[loop]
steps = {steps}
batch = 4
warm_up = 2
checkpoint_every = 2
data_workers = 0
average = 0.5
slow = []
[jitter]
[[data]]
format = "store"
store = "store"
um_per_px = 0.2
"""


def configs(folder: Path, steps: int = 4, start: str = "") -> tuple[Path, Path]:
    """The configs of a tiny detector and a tiny classifier that learn from the store in `folder`.

    The detector is watched on a picture of another one.
    """
    held = AnnotationStore(UPath(folder / "held-out"))
    if not held.shards():
        held.add(pictures(folder / "held", 1, seed=99), by="ada", source="painted")
    paths = folder / "detector.toml", folder / "classifier.toml"
    for path, text in zip(paths, (DETECTOR, CLASSIFIER), strict=True):
        reference = start.format(path.stem)
        path.write_text(text.format(steps=steps, start=reference))
    return paths


def pictures(folder: Path, n: int, seed: int = 0) -> list[LabelledPicture]:
    """Painted pictures of red cells, a lymphocyte and a monocyte each, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    labelled = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        discs = [(40 + 70 * k + int(rng.integers(12)), 40 + int(rng.integers(60)), 18) for k in range(4)]
        path = folder / f"{seed}-{i}.png"
        grain = rng.integers(-12, 13, (140, 320, 3))
        Image.fromarray((paint(140, 320, discs) + grain).clip(0, 255).astype(np.uint8)).save(path)
        boxes = np.array([(x - r, y - r, x + r + 1, y + r + 1) for x, y, r in discs], np.float32)
        labelled.append(LabelledPicture(path, boxes, ("rbc", "rbc", "lymphocyte", "monocyte")))
    return labelled


def add(folder: Path, n: int, seed: int = 0) -> AnnotationStore:
    """Add some pictures to the store in `folder`."""
    store = AnnotationStore(UPath(folder / "store"))
    store.add(pictures(folder / "pictures", n, seed), by="ada", source="painted")
    return store
