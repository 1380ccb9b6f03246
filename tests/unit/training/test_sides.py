"""What a model learns from, watches and is judged on shows no source twice: plans that do are refused, pairs named."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from upath import UPath

from wbc.configs import read_toml
from wbc.datasets.annotation_store import AnnotationStore
from wbc.datasets.labels import LabelledPicture
from wbc.datasets.splits import check_apart, prints_of
from wbc.evaluation.frozen import Frozen, FrozenSet
from wbc.evaluation.unseen import check_unseen
from wbc.taxonomy import load_taxonomy
from wbc.training.classifier import ClassifierConfig, train_classifier
from wbc.training.detector import DetectorConfig
from wbc.training.orders import Order, Settled
from wbc.training.sides import check_sides

CONFIG = """
classes = ["lymphocyte", "monocyte"]
builder = "crop_classifier"
taxonomy = "blood"
imagenet = false
[model]
[loop]
steps = 1
batch = 2
rate = 1e-3
"""
TABLE = (
    '\n[[{side}]]\nset = "{side}"\nformat = "crops"\ntable = "cells.parquet"\nsplits = ["{side}"]\num_per_px = 0.13\n'
)
STORE = '\n[[{side}]]\nset = "{side}"\nformat = "store"\nstore = "{store}"\num_per_px = 0.13\n'


def looks(seed: int, side: int = 200) -> Image.Image:
    """A picture like no other."""
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3)).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(picture: Image.Image, quality: int = 90) -> bytes:
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()


def plan(folder: Path, rows: Mapping[str, tuple[str, Image.Image]], *blocks: str) -> Path:
    """The config of a classifier on a table of cells: of each file its split and picture."""
    table = [
        {"split": split, "kind": ("lymphocyte", "monocyte")[i % 2], "file": name, "jpeg": jpeg(picture)}
        for i, (name, (split, picture)) in enumerate(rows.items())
    ]
    pd.DataFrame(table).to_parquet(folder / "cells.parquet")
    (folder / "config.toml").write_text("".join([CONFIG, *blocks]))
    return folder / "config.toml"


def field(folder: Path, name: str, seed: int, slide: str = "") -> LabelledPicture:
    """A field of two cells, 13 µm about each like nowhere else."""
    folder.mkdir(exist_ok=True)
    looks(seed, 600).save(folder / name)
    boxes = np.array([(100, 250, 200, 350), (400, 250, 500, 350)], np.float32)
    return LabelledPicture(folder / name, boxes, ("lymphocyte", "monocyte"), slide_id=slide)


@pytest.mark.parametrize("side", ["watch", "measure"])
@pytest.mark.parametrize("way", ["the file again", "turned", "mirrored, smaller"])
def test_a_cell_on_two_sides_is_refused_before_anything_is_learnt(tmp_path: Path, side: str, way: str) -> None:
    again = {
        "the file again": looks(1),
        "turned": looks(1).transpose(Image.Transpose.ROTATE_270),
        "mirrored, smaller": looks(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((190, 190)).resize((200, 200)),
    }[way]
    rows = {f"{i}.jpg": ("data", looks(i)) for i in range(4)}
    rows |= {f"{i}.jpg": (side, looks(i)) for i in range(10, 13)}
    config = plan(tmp_path, rows | {"again.jpg": (side, again)}, TABLE.format(side="data"), TABLE.format(side=side))
    shared = rf"data and {side} share sources, 1 pairs: .*cells\.parquet: 1\.jpg and .*cells\.parquet: again\.jpg"
    with pytest.raises(ValueError, match=shared):
        train_classifier(config, tmp_path, tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_left_out_is_on_no_side(tmp_path: Path) -> None:
    rows = {"a.jpg": ("data", looks(1)), "b.jpg": ("watch", looks(1)), "c.jpg": ("watch", looks(2))}
    blocks = TABLE.format(side="data"), TABLE.format(side="watch")
    given = read_toml(plan(tmp_path, rows, *blocks, 'leave_out = ["b.jpg"]\n'), ClassifierConfig)
    check_sides("classifier", given, tmp_path)
    with pytest.raises(ValueError, match="share sources"):
        check_sides("classifier", read_toml(plan(tmp_path, rows, *blocks), ClassifierConfig), tmp_path)


def test_cells_of_one_slide_on_two_sides_are_refused(tmp_path: Path) -> None:
    for name, (seed, slide) in {"learnt": (1, "s1"), "watched": (2, "s1"), "other": (3, "s2")}.items():
        AnnotationStore(UPath(tmp_path / name)).add(
            [field(tmp_path / "fields", f"{name}.png", seed, slide)], by="ada", source="painted"
        )
    blocks = {
        name: STORE.format(side=side, store=name)
        for name, side in {"learnt": "data", "watched": "watch", "other": "watch"}.items()
    }
    config = plan(tmp_path, {}, blocks["learnt"], blocks["watched"])
    with pytest.raises(ValueError, match=r"data and watch share sources, 4 pairs: .*\(both of slide s1\)"):
        check_sides("classifier", read_toml(config, ClassifierConfig), tmp_path)
    config = plan(tmp_path, {}, blocks["learnt"], blocks["other"])
    check_sides("classifier", read_toml(config, ClassifierConfig), tmp_path)


def test_nothing_is_learnt_from_frozen_slides(tmp_path: Path) -> None:
    """A cell is known again in a mosaic of fields, a field as itself."""
    one, other = (field(tmp_path / "fields", f"{seed}.png", seed) for seed in (1, 2))
    mosaic = Image.new("RGB", (1200, 600))
    for place, picture in enumerate((one, other)):
        mosaic.paste(Image.open(str(picture.path)), (600 * place, 0))
    mosaic.save(tmp_path / "mosaic.png")
    boxes = np.concatenate([one.boxes, other.boxes + np.array([600, 0, 600, 0], np.float32)])
    joined = LabelledPicture(tmp_path / "mosaic.png", boxes, one.labels + other.labels)
    unseen = field(tmp_path / "fields", "3.png", 3)

    def frozen(picture: LabelledPicture) -> Frozen:
        return Frozen((FrozenSet("painted", ((picture, 0.13),)),), load_taxonomy("blood"))

    AnnotationStore(UPath(tmp_path / "store")).add([one], by="ada", source="painted")
    config = plan(tmp_path, {}, STORE.format(side="data", store="store"))
    classifier = Settled(Order("classifier", config, tmp_path, tmp_path), read_toml(config, ClassifierConfig), tmp_path)
    with pytest.raises(ValueError, match=r"data and frozen slides share sources, 2 pairs: .*mosaic\.png, box 1"):
        check_unseen(classifier, frozen(joined))
    check_unseen(classifier, frozen(unseen))
    config.write_text(
        CONFIG.replace("crop_classifier", "lite_detector")
        .replace('"lymphocyte", "monocyte"', '"wbc"')
        .replace('taxonomy = "blood"', "um_per_px = 0.13")
        + STORE.format(side="data", store="store")
    )
    detector = Settled(Order("detector", config, tmp_path, tmp_path), read_toml(config, DetectorConfig), tmp_path)
    with pytest.raises(ValueError, match=r"data and frozen slides share sources, 1 pairs: .*\(the same file\)"):
        check_unseen(detector, frozen(one))
    check_unseen(detector, frozen(unseen))


def test_pictures_of_one_slide_on_two_sides_are_refused(tmp_path: Path) -> None:
    one, other = (field(tmp_path / "fields", f"{seed}.png", seed, slide="s1") for seed in (1, 2))
    with pytest.raises(ValueError, match=r"train and test share sources, 1 pairs: .*\(both of slide s1\)"):
        check_apart({"train": prints_of([one]), "test": prints_of([other])})
