"""Whole pictures come scaled and mirrored with their boxes, and those that change meanwhile are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import paint
from PIL import Image

from wbc.datasets.coco import coco_truth
from wbc.datasets.labels import LabelledPicture
from wbc.training.detector_data import BoxData, read_boxes
from wbc.training.whole_pictures import WholePictures, WholeSettings, load_whole

DISCS = [(30, 25, 10), (90, 60, 10), (120, 30, 10)]
SPEC = BoxData("coco", "images", "truth.json", {"rbc": "rbc"})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Pictures of 160x80 px with three red cells of 20 px each, all different."""
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(20):
        path = tmp_path / "images" / f"{i:02d}.png"
        discs = [(x + i, y, r) for x, y, r in DISCS]
        Image.fromarray(paint(80, 160, discs)).save(path)
        boxes = np.array([(x - r, y - r, x + r + 1, y + r + 1) for x, y, r in discs], np.float32)
        rows.append((path.name, 160, 80, LabelledPicture(path, boxes, ("rbc",) * 3)))
    (tmp_path / "truth.json").write_text(json.dumps(coco_truth(rows, ["rbc"])))
    return tmp_path


def load(data: Path, settings: WholeSettings = WholeSettings(short_px=120)) -> WholePictures:
    return load_whole([SPEC], data, ["rbc"], settings, seed=3)


def test_pictures_are_scaled_by_their_short_edge_and_boxes_go_along(data: Path) -> None:
    samples, mirrored = load(data), set()
    for index in range(12):
        pixels, target = samples[index]
        assert pixels.shape == (3, 120, 240)
        dark = torch.zeros(120, 240, dtype=torch.bool)
        for x0, y0, x1, y1 in target["boxes"].round().int().tolist():
            assert pixels[:, (y0 + y1) // 2, (x0 + x1) // 2].mean() < 0.6
            dark[y0:y1, x0:x1] = True
        assert pixels.mean(0)[~dark].min() > 0.6
        middle = target["boxes"][:, :2].mean(0) + 15
        mirrored.add((bool(middle[0] > 120), bool(middle[1] > 60)))
    assert len(mirrored) > 2
    assert samples.um_per_px == pytest.approx(7.2 / 31, rel=0.02)
    assert samples.labels_shown == {1}


def test_a_sample_depends_on_seed_and_index_alone_and_names_its_picture(data: Path) -> None:
    one, other = load(data), load(data)
    assert torch.equal(one[5][0], other[5][0])
    (name,) = one.pictures(5)
    assert Path(name).is_file()
    assert one.digest == other.digest
    (data / "images" / "07.png").write_bytes((data / "images" / "08.png").read_bytes())
    assert load(data).digest != one.digest


def test_a_picture_that_changes_while_it_is_learnt_from_is_named(data: Path) -> None:
    samples = load(data)
    (name,) = samples.pictures(0)
    Image.new("RGB", (160, 80)).save(name)
    with pytest.raises(ValueError, match=rf"{Path(name).name} changed while a model learns from it"):
        samples[0]


def test_labels_that_are_no_class_are_named(data: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png: labels \['rbc'\] are none of \['wbc'\]"):
        load_whole([SPEC], data, ["wbc"], WholeSettings(), 0)


def test_parts_of_a_data_set_share_no_picture_and_miss_none(data: Path) -> None:
    def names(*part: float) -> set[str]:
        spec = BoxData("coco", "images", "truth.json", {"rbc": "rbc"}, part=(part[0], part[1]))
        return {picture.path.name for picture in read_boxes(spec, data)}

    learnt, held_out = names(0.0, 0.7), names(0.7, 1.0)
    assert learnt
    assert held_out
    assert not learnt & held_out
    assert len(learnt | held_out) == 20
