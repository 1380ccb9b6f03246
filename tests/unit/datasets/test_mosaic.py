"""Data sets as a training has them: made coarser, at their scale, as mosaics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import TRUTH, Box, clean, spec, write
from painted import paint
from PIL import Image

from wbc.datasets.augment import Jitter
from wbc.datasets.mosaic import MosaicSettings, Source, add_giant_platelets, cut, load_source
from wbc.training.detector_data import Mosaics, load_sources


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Three pictures of painted red cells of 36 px (0.2 µm per px)."""
    folder = tmp_path_factory.mktemp("painted")
    pictures = []
    for number in range(3):
        discs = [(30 + 60 * (k % 5), 30 + 60 * (k // 5), 18) for k in range(12 + number)]
        Image.fromarray(paint(240, 320, discs)).save(folder / f"{number}.png")
        boxes: list[Box] = [(x - r, y - r, x + r + 1, y + r + 1) for x, y, r in discs]
        pictures.append(clean(folder / f"{number}.png", boxes, ["rbc"] * len(boxes)))
    return load_source(pictures, 0.2, ["wbc", "rbc"], 1.0)


def test_a_finer_data_set_is_made_coarser_and_its_boxes_with_it(tmp_path: Path) -> None:
    Image.fromarray(paint(400, 600, [(200, 150, 90)])).save(tmp_path / "a.png")
    picture = clean(tmp_path / "a.png", [(110, 60, 291, 241)], ["rbc"])
    source = load_source([picture], 0.04, ["rbc"], 1.0)
    assert source.um_per_px > 0.04
    ratio = 0.04 / source.um_per_px
    assert source.pixels[0].shape == (round(400 * ratio), round(600 * ratio), 3)
    rows, columns = np.nonzero(source.pixels[0][:, :, 0] < 180)
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(source.boxes[0][0], edges, atol=1)


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: labels \['wbc'\] are none of \['rbc'\]"):
        load_source([clean(tmp_path / "a.png", [(0, 0, 9, 9)], ["wbc"])], 0.2, ["rbc"], 1.0)


def test_a_config_is_loaded_with_the_scale_its_red_cells_tell(tmp_path: Path) -> None:
    write(tmp_path, TRUTH, "voc")
    (measured,) = load_sources([spec("voc")], tmp_path, ["rbc", "wbc"])
    (given,) = load_sources([spec("voc", um_per_px=0.25)], tmp_path, ["rbc", "wbc"])
    assert measured.um_per_px == pytest.approx(7.2 / 40)
    assert given.um_per_px == 0.25
    assert [labels.tolist() for labels in given.labels] == [[1, 2], [1]]


SETTINGS = MosaicSettings(size_px=256)


def test_a_mosaic_depends_on_seed_and_index_alone(source: Source) -> None:
    one, other = (Mosaics([source], SETTINGS, Jitter(), seed=7) for _ in range(2))
    other[3]
    for index in (5, 0):
        (pixels, target), (again, target_again) = one[index], other[index]
        assert torch.equal(pixels, again)
        assert torch.equal(target["boxes"], target_again["boxes"])
    assert not torch.equal(one[0][0], one[1][0])
    assert not torch.equal(one[0][0], Mosaics([source], SETTINGS, Jitter(), seed=8)[0][0])


def test_boxes_of_a_mosaic_lie_in_it_on_the_cells(source: Source) -> None:
    mosaics = Mosaics([source], SETTINGS, Jitter(plain=1.0), seed=1)
    inside, outside = [], []
    for index in range(12):
        pixels, target = mosaics[index]
        boxes = target["boxes"]
        assert pixels.shape == (3, 256, 256)
        assert len(boxes) >= 4
        assert boxes.min() >= 0
        assert boxes.max() <= 256
        assert ((boxes[:, 2:] - boxes[:, :2]) >= 3).all()
        assert set(target["labels"].tolist()) == {2}
        dark, boxed = pixels.mean(0).numpy() < 0.6, np.zeros((256, 256), bool)
        for x0, y0, x1, y1 in boxes.round().int().tolist():
            boxed[y0:y1, x0:x1] = True
        inside.append(dark[boxed].mean())
        outside.append(dark[~boxed].mean())
    assert np.median(inside) > 0.6
    assert np.median(outside) < 0.08


def test_red_cells_of_a_mosaic_have_the_sizes_asked_for(source: Source) -> None:
    mosaics = Mosaics([source], MosaicSettings(256, 30, 32), Jitter(shear=0.0), seed=2)
    sides = np.concatenate([(b[:, 2:] - b[:, :2]).max(1).values for b in (mosaics[i][1]["boxes"] for i in range(6))])
    assert 30 * 0.9 < np.median(sides) < 32 * 1.15
    assert sides.max() < 32 * 1.15


def test_giant_platelets_are_as_large_as_red_cells_where_there_is_room(tmp_path: Path) -> None:
    discs = [(40, 40, 5), (100, 60, 5), (300, 20, 20), (290, 45, 5), (4, 100, 5)]
    Image.fromarray(paint(200, 400, discs)).save(tmp_path / "a.png")
    boxes: list[Box] = [(x - r, y - r, x + r + 1, y + r + 1) for x, y, r in discs]
    names = ["platelet", "platelet", "rbc", "platelet", "platelet"]
    source = load_source([clean(tmp_path / "a.png", boxes, names)], 0.2, ["rbc", "platelet"], 1.0)
    assert len(source.platelets) == 2  # one of the others meets a red cell, one the edge
    before = source.pixels[0]
    for seed in range(8):
        rng = np.random.default_rng(seed)
        pixels, all_boxes, labels = add_giant_platelets(before, source.boxes[0], source.labels[0], source, 36, rng)
        new = all_boxes[len(boxes) :]
        assert 1 <= len(new) <= 2
        assert labels[len(boxes) :].tolist() == [2] * len(new)
        sides = (new[:, 2:] - new[:, :2]).max(1)
        assert sides.min() > 0.55 * 36
        assert sides.max() < 1.45 * 36
        for x0, y0, x1, y1 in new.round().astype(int):
            disc = pixels[y0:y1, x0:x1].astype(int)
            assert (disc <= before[y0:y1, x0:x1]).all()
            assert (disc < before[y0:y1, x0:x1]).all(2).mean() > 0.5
    np.testing.assert_array_equal(before, source.pixels[0])


def test_a_cut_cell_stays_while_enough_of_it_is_seen() -> None:
    boxes = np.array(
        [[-10, 10, 10, 30], [-14, 10, 6, 30], [95, 40, 120, 60], [98, 0, 100, 20], [5, 5, 9, 9]], np.float32
    )
    kept, labels = cut(boxes, np.arange(5), (50, 100), 0.35)
    assert labels.tolist() == [0, 4]
    assert kept.tolist() == [[0, 10, 10, 30], [5, 5, 9, 9]]
    assert cut(boxes[:0], np.arange(0), (50, 100), 0.35)[0].shape == (0, 4)
