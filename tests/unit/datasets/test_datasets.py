"""Labelled pictures are read alike from every format, and what is wrong with a file is said by its name."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from painted import paint
from PIL import Image

from wbc.configs import checked
from wbc.datasets.augment import Jitter
from wbc.datasets.coco import coco_truth, read_coco
from wbc.datasets.crops import (
    PATCH_PX,
    PATCH_UM,
    Crops,
    TableForm,
    cut_crops,
    read_cell_boxes,
    read_cell_pictures,
    read_crop_table,
)
from wbc.datasets.labels import LabelledPicture, red_cell_um_per_px
from wbc.datasets.mosaic import MosaicSettings, Source, add_giant_platelets, cut, load_source
from wbc.datasets.reading import Mark
from wbc.datasets.reading import clean as clean_marks
from wbc.datasets.voc import read_voc
from wbc.datasets.yolo import read_yolo
from wbc.training.detector_data import BoxData, Mosaics, load_sources, read_boxes

Box = tuple[float, float, float, float]

NAMES = {"RBC": "rbc", "WBC": "wbc"}
WIDTH, HEIGHT = 200, 100
TRUTH: dict[str, list[tuple[str, Box]]] = {
    "p1": [("RBC", (10, 20, 50, 60)), ("WBC", (100, 10, 180, 90))],
    "p2": [("RBC", (0, 0, 40, 40))],
}
FORMATS = ("voc", "yolo", "coco", "fractions")


def voc(objects: list[tuple[str, Any]]) -> str:
    edges = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        f"<object><name>{name}</name><bndbox>{''.join(f'<{e}>{v}</{e}>' for e, v in zip(edges, box, strict=True))}"
        "</bndbox></object>"
        for name, box in objects
    ]
    return f"<annotation>{''.join(boxes)}</annotation>"


def write(root: Path, truth: dict[str, list[tuple[str, Box]]], form: str) -> Path:
    """A data set below `root` in a format; returns where its annotations are."""
    images = root / "images"
    images.mkdir()
    for stem in truth:
        Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{stem}.png")
    place = root / "annotations"
    if form in ("voc", "yolo"):
        place.mkdir()
    if form == "voc":
        for stem, objects in truth.items():
            (place / f"{stem}.xml").write_text(voc(objects))
    elif form == "yolo":
        for stem, objects in truth.items():
            (place / f"{stem}.txt").write_text("\n".join(yolo_line(*o) for o in objects))
    elif form == "coco":
        pictures = [
            (f"{stem}.png", WIDTH, HEIGHT, LabelledPicture(images / stem, as_array(o), tuple(n for n, _ in o)))
            for stem, o in truth.items()
        ]
        place.write_text(json.dumps(coco_truth(pictures, list(NAMES))))
    else:
        rows = [
            (f"{stem}.png", x0 / WIDTH, y0 / HEIGHT, x1 / WIDTH, y1 / HEIGHT, name)
            for stem, objects in truth.items()
            for name, (x0, y0, x1, y1) in objects
        ]
        pd.DataFrame(rows, columns=["image", "xmin", "ymin", "xmax", "ymax", "label"]).to_csv(place, index=False)
    return place


def clean(path: Path, boxes: list[Box], labels: list[str]) -> LabelledPicture:
    """A picture of boxes that can be right."""
    return clean_marks(path, [Mark(path.name, box, label) for box, label in zip(boxes, labels, strict=True)])


def as_array(objects: list[tuple[str, Box]]) -> NDArray[np.float32]:
    return np.array([box for _, box in objects], np.float32).reshape(-1, 4)


def yolo_line(name: str, box: Box) -> str:
    x0, y0, x1, y1 = box
    values = ((x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT)
    return f"{list(NAMES).index(name)} {' '.join(map(str, values))}"


def spec(form: str, **changes: Any) -> BoxData:
    values: dict[str, Any] = {"images": "images", "annotations": "annotations", "names": NAMES, "weight": 1.0}
    return BoxData(form, **values | changes)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_tells_the_same_truth(tmp_path: Path, form: str) -> None:
    write(tmp_path, TRUTH, form)
    read = read_boxes(spec(form), tmp_path)
    assert [p.path for p in read] == [tmp_path / "images" / f"{stem}.png" for stem in TRUTH]
    for picture, objects in zip(read, TRUTH.values(), strict=True):
        assert picture.labels == tuple(NAMES[name] for name, _ in objects)
        np.testing.assert_allclose(picture.boxes, as_array(objects), atol=1e-3)


@pytest.mark.parametrize("form", FORMATS)
def test_boxes_drawn_twice_or_without_area_are_left_out_and_named(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wbc = TRUTH["p1"][1]
    objects = [*TRUTH["p1"], ("RBC", (11, 20, 50, 60)), ("RBC", (30, 30, 30, 50)), ("RBC", wbc[1])]
    write(tmp_path, {"p1": objects}, form)
    (picture,) = read_boxes(spec(form), tmp_path)
    assert picture.labels == ("rbc", "wbc", "rbc")
    np.testing.assert_allclose(picture.boxes, as_array([*TRUTH["p1"], wbc]), atol=1e-3)
    assert "box of rbc in p1.png is drawn twice" in caplog.text
    assert "box of rbc in p1.png has no area" in caplog.text


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_picture_is_named_with_its_annotation(tmp_path: Path, form: str) -> None:
    place = write(tmp_path, TRUTH, form)
    (tmp_path / "images" / "p2.png").unlink()
    with pytest.raises(ValueError, match=rf"{place}.*(p2\.|picture)"):
        read_boxes(spec(form), tmp_path)


@pytest.mark.parametrize("form", ["voc", "coco", "fractions"])
def test_an_unknown_label_is_named_with_its_file(tmp_path: Path, form: str) -> None:
    place = write(tmp_path, TRUTH, form)
    with pytest.raises(ValueError, match=rf"{place}.*WBC.*none of \['RBC'\]"):
        read_boxes(spec(form, names={"RBC": "rbc"}), tmp_path)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^x\.toml: format is 'labelme', none of 'voc', 'yolo', 'coco', "):
        checked({"format": "labelme", "images": "a", "annotations": "b", "names": NAMES}, BoxData, "x.toml")


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_a_split_keeps_its_pictures_alone(tmp_path: Path, form: str) -> None:
    write(tmp_path, TRUTH | {"p3": TRUTH["p2"]}, form)
    (tmp_path / "train.txt").write_text("p3\np1\n")
    (tmp_path / "central.csv").write_text("image,split\np2,train\np1,test\n")
    assert [p.path.stem for p in read_boxes(spec(form, split=("train.txt",)), tmp_path)] == ["p1", "p3"]
    assert [p.path.stem for p in read_boxes(spec(form, split_csv="central.csv"), tmp_path)] == ["p2"]
    assert [p.path.stem for p in read_boxes(spec(form, keep="p[12].*"), tmp_path)] == ["p1", "p2"]
    assert [p.path.stem for p in read_boxes(spec(form, leave_out=("p2",)), tmp_path)] == ["p1", "p3"]


def test_a_label_that_is_no_category_is_named_with_its_picture(tmp_path: Path) -> None:
    picture = LabelledPicture(tmp_path / "p1.png", np.array([(1, 1, 5, 5)], np.float32), ("wbc",))
    with pytest.raises(ValueError, match=r"p1\.png: 'wbc' is none of rbc, platelet"):
        coco_truth([("p1.png", 10, 10, picture)], ["rbc", "platelet"])


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_a_split_that_names_no_annotation_is_refused(tmp_path: Path, form: str) -> None:
    write(tmp_path, TRUTH, form)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "p9.png")
    (tmp_path / "train.txt").write_text("p9")
    with pytest.raises(ValueError, match=r"annotations/p9\.(xml|txt)"):
        read_boxes(spec(form, split=("train.txt",)), tmp_path)


@pytest.mark.parametrize("form", ["voc", "yolo"])
def test_annotations_beside_their_pictures_are_no_pictures(tmp_path: Path, form: str) -> None:
    place = write(tmp_path, TRUTH, form)
    for path in place.iterdir():
        path.rename(tmp_path / "images" / path.name)
    assert [p.path.suffix for p in read_boxes(spec(form, annotations="images"), tmp_path)] == [".png", ".png"]


@pytest.mark.parametrize(
    "content",
    [
        "<annotation>",
        voc([("RBC", (1, 2, 3, "x"))]),
        voc([("RBC", (1, 2, 3, "nan"))]),
        "<a><object><name>RBC</name></object></a>",
    ],
)
def test_broken_voc_is_named(tmp_path: Path, content: str) -> None:
    place = write(tmp_path, TRUTH, "voc")
    (place / "p2.xml").write_text(content)
    with pytest.raises(ValueError, match=r"p2\.xml:"):
        read_voc(tmp_path / "images", place, NAMES)


@pytest.mark.parametrize(
    "line", ["0 0.5 0.5 0.1", "0 a 0.5 0.1 0.1", "2 .5 .5 .1 .1", "-1 .5 .5 .1 .1", "0 nan .5 .1 .1", ""]
)
def test_broken_yolo_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    place = write(tmp_path, TRUTH, "yolo")
    (place / "p2.txt").write_text(f"0 .5 .5 .1 .1\n{line}\n0 .2 .2 .1 .1\n")
    with pytest.raises(ValueError, match=r"p2\.txt:2: "):
        read_yolo(tmp_path / "images", place, list(NAMES))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"categories": [], "images": [], "annotations": [{"image_id": 4}]}']
)
def test_broken_coco_is_named(tmp_path: Path, content: str) -> None:
    place = write(tmp_path, TRUTH, "coco")
    place.write_text(content)
    with pytest.raises(ValueError, match=f"{place}: (not COCO|not JSON|annotation number 1: there is no image 4)"):
        read_coco(tmp_path / "images", place)


def test_coco_without_names_keeps_its_categories(tmp_path: Path) -> None:
    place = write(tmp_path, TRUTH, "coco")
    assert [p.labels for p in read_coco(tmp_path / "images", place)] == [("RBC", "WBC"), ("RBC",)]


def test_pictures_without_boxes_stay(tmp_path: Path) -> None:
    for form in ("voc", "yolo", "coco"):
        root = tmp_path / form
        root.mkdir()
        write(root, {"p1": []}, form)
        assert [p.boxes.shape for p in read_boxes(spec(form), root)] == [(0, 4)]


def test_scale_comes_from_the_median_red_cell() -> None:
    boxes: list[Box] = [(0, 0, 36, 36), (0, 50, 30, 50 + 43.2), (50, 50, 58, 58), (0, 0, 90, 90)]
    pictures = [clean(Path("a.png"), boxes, ["rbc", "rbc", "rbc", "wbc"]), clean(Path("b.png"), [], [])]
    assert red_cell_um_per_px(pictures) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no rbc among 1 pictures"):
        red_cell_um_per_px(pictures[1:])


# Crops


def jpeg(colour: tuple[int, int, int]) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (100, 80), colour).save(sink, "JPEG")
    return sink.getvalue()


def test_crops_of_a_split_come_from_a_table(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9)]
    rows = zip(["train", "train", "test", "train"], ["a", "b", "a", "platelet"], map(jpeg, colours), strict=True)
    pd.DataFrame(rows, columns=["split", "kind", "jpeg"]).to_parquet(tmp_path / "crops.parquet")
    crops = read_crop_table(tmp_path / "crops.parquet", "train", TableForm(0.1, leave_out=("platelet",)))
    assert crops.labels == ("a", "b")
    np.testing.assert_allclose(crops.pixels.mean((1, 2)), colours[:2], atol=3)
    with pytest.raises(ValueError, match=r"crops\.parquet: no crop of split 'val'"):
        read_crop_table(tmp_path / "crops.parquet", "val", TableForm(0.1))
    with pytest.raises(ValueError, match=r"no column 'label'; the columns are split, kind, jpeg"):
        read_crop_table(tmp_path / "crops.parquet", "train", TableForm(0.1, "label"))


def test_only_a_lone_white_cell_of_a_sure_kind_is_cut(tmp_path: Path) -> None:
    pictures = []
    for stem, labels in (("one", ("rbc", "wbc")), ("two", ("wbc", "wbc")), ("unsure", ("wbc",))):
        Image.fromarray(paint(100, 200, [(150, 40, 20)])).save(tmp_path / f"{stem}.png")
        boxes: list[Box] = [(130, 20, 171, 61), (0, 0, 20, 20)]
        pictures.append(clean(tmp_path / f"{stem}.png", boxes[::-1][-len(labels) :], list(labels)))
    um_per_px = PATCH_UM / PATCH_PX
    crops = cut_crops(pictures, {"one": "monocyte", "two": "basophil"}, um_per_px)
    assert crops.labels == ("monocyte",)
    dark = np.argwhere(crops.pixels[0, :, :, 0] < 200)
    np.testing.assert_allclose(dark.mean(0), PATCH_PX / 2 - 0.5, atol=1)
    np.testing.assert_allclose(np.ptp(dark, 0), 40, atol=1)
    assert cut_crops(pictures, {}, um_per_px).pixels.shape == (0, PATCH_PX, PATCH_PX, 3)


def test_cells_come_from_pictures_of_one_each_and_from_boxes_of_fields(tmp_path: Path) -> None:
    field = np.full((200, 300, 3), 240, np.uint8)
    field[40:60, 80:100], field[150:170, 220:240] = (200, 0, 0), (0, 0, 200)
    for name, pixels in (("f.png", field), ("1.png", field[30:70, 70:110]), ("2.png", field[140:180, 210:250])):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "cells.csv").write_text(
        "field,smear,kind,x0,y0,x1,y1\nf.png,A,monocyte,220,150,240,170\nf.png,A,basophil,80,40,100,60\n"
    )
    (tmp_path / "kinds.csv").write_text("image,label\n2,monocyte\n1,basophil\n")
    boxes = read_cell_boxes(tmp_path, tmp_path / "cells.csv", 0.5)
    pictures = read_cell_pictures(tmp_path, tmp_path / "kinds.csv", 0.5)
    assert boxes.labels == pictures.labels == ("monocyte", "basophil")
    for crops in (boxes, pictures):
        middles = crops.pixels[:, PATCH_PX // 2, PATCH_PX // 2].astype(int)
        assert (np.abs(middles - [(0, 0, 200), (200, 0, 0)]) < 12).all()
    np.testing.assert_allclose(boxes.pixels[:, 30:-30, 30:-30], pictures.pixels[:, 30:-30, 30:-30], atol=4)


def test_cells_without_a_picture_or_with_a_broken_box_are_named(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("field,kind,x0,y0,x1,y1\nf.png,monocyte,1,1,2,2\nf.png,monocyte,1,1,,2\n")
    with pytest.raises(ValueError, match=r"cells\.csv: line 3: the box is not four finite numbers"):
        read_cell_boxes(tmp_path, tmp_path / "cells.csv", 0.1)
    (tmp_path / "cells.csv").write_text("field,kind,x0,y0,x1,y1\nf.png,monocyte,1,1,2,2\n")
    with pytest.raises(ValueError, match=r"cells\.csv: picture .*f\.png is missing"):
        read_cell_boxes(tmp_path, tmp_path / "cells.csv", 0.1)
    (tmp_path / "kinds.csv").write_text("image,label\n7,monocyte\n")
    with pytest.raises(ValueError, match=r"kinds\.csv: there is no picture 7 in"):
        read_cell_pictures(tmp_path, tmp_path / "kinds.csv", 0.1)


def test_crops_of_another_number_than_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels"):
        Crops(np.zeros((1, PATCH_PX, PATCH_PX, 3), np.uint8), ("a", "b"))


# Mosaics


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
