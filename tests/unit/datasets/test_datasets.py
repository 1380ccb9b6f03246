"""Labelled pictures are read alike from every format, and what is wrong with a file is said by its name."""

import logging
from pathlib import Path

import numpy as np
import pytest
from labelled import HEIGHT, NAMES, TRUTH, WIDTH, Box, as_array, clean, spec, voc, write
from PIL import Image

from wbc.configs import checked
from wbc.datasets.coco import coco_truth, read_coco
from wbc.datasets.labels import LabelledPicture, red_cell_um_per_px
from wbc.datasets.voc import read_voc
from wbc.datasets.yolo import read_yolo
from wbc.training.detector_data import BoxData, read_boxes

FORMATS = ("voc", "yolo", "coco", "fractions")


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


# Mosaics
