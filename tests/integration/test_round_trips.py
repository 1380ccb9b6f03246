"""All boxes of real data sets, from form to form and back: the same pictures, names and boxes to 0.01 px."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wbc.datasets.coco import read_coco, write_coco
from wbc.datasets.crops import TableForm, read_crop_table
from wbc.datasets.formats import Source, read_source, write_pictures
from wbc.datasets.geojson import read_geojson, write_geojson
from wbc.datasets.labels import LabelledPicture, find_pictures
from wbc.datasets.splits import Prints, check_apart, divide, prints_of, prints_of_cells
from wbc.datasets.via import read_via, write_via
from wbc.datasets.voc import read_voc
from wbc.datasets.yolo import read_yolo

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=["bccd", "pbc"])
def pictures(request: pytest.FixtureRequest, real_data: Path) -> list[LabelledPicture]:
    """All labelled pictures of a data set: bccd's from VOC, pbc's from YOLO."""
    root = real_data / str(request.param)
    if request.param == "bccd":
        return read_voc(root / "images", root / "voc", {"RBC": "rbc", "WBC": "wbc", "Platelets": "platelet"})
    return read_yolo(root / "images", root / "yolo", ["wbc", "rbc", "platelet"])


def assert_same(read: Sequence[LabelledPicture], expected: Sequence[LabelledPicture]) -> None:
    assert [p.path for p in read] == [p.path for p in expected]
    for picture, other in zip(read, expected, strict=True):
        assert picture.labels == other.labels
        np.testing.assert_allclose(picture.boxes, other.boxes, rtol=0, atol=0.01)


def test_to_coco_to_via_and_back(pictures: list[LabelledPicture], tmp_path: Path) -> None:
    images = pictures[0].path.parent
    write_coco(tmp_path / "coco.json", pictures, images)
    from_coco = read_coco(images, tmp_path / "coco.json")
    assert_same(from_coco, pictures)
    write_via(tmp_path / "via.json", from_coco, images)
    from_via = read_via(images, tmp_path / "via.json")
    write_coco(tmp_path / "again.json", from_via, images)
    assert_same(read_coco(images, tmp_path / "again.json"), pictures)
    assert sum(len(p.labels) for p in pictures) > 2_000


def test_to_geojson_and_back(pictures: list[LabelledPicture], tmp_path: Path) -> None:
    for picture in pictures:
        write_geojson(picture, tmp_path / f"{picture.path.stem}.geojson")
    assert_same(read_geojson(pictures[0].path.parent, tmp_path), sorted(pictures, key=lambda p: p.path.stem))


@pytest.mark.parametrize("form", ["cvat", "label_studio", "via", "geojson"])
def test_through_every_format_that_is_written(pictures: list[LabelledPicture], tmp_path: Path, form: str) -> None:
    images, target = pictures[0].path.parent, tmp_path / f"written.{'xml' if form == 'cvat' else 'json'}"
    write_pictures(target, pictures, images, form)
    read = read_source(Source(target, images, None))
    assert_same(sorted(read, key=lambda p: p.path.stem), sorted(pictures, key=lambda p: p.path.stem))


def test_official_splits_are_apart_but_for_one_field_that_was_photographed_twice(real_data: Path) -> None:
    sides: dict[str, Prints] = {}
    none = np.zeros((0, 4), np.float32)
    for name in ("train", "val", "test"):
        stems = (real_data / "bccd" / "splits" / f"{name}.txt").read_text().split()
        sides[name] = prints_of([LabelledPicture(real_data / "bccd/images" / f"{s}.jpg", none, ()) for s in stems])
    check_apart({"train": sides["train"], "test": sides["test"]})
    check_apart({"val": sides["val"], "test": sides["test"]})
    with pytest.raises(ValueError, match=r"1 pairs: \S*BloodImage_00038.jpg and \S*BloodImage_00037.jpg"):
        check_apart(sides)
    table = pd.read_csv(real_data / "pbc" / "central_cell.csv")
    found = find_pictures(real_data / "pbc" / "images")
    parts = {
        str(name): prints_of([LabelledPicture(found[s], none, ()) for s in rows])
        for name, rows in table.groupby("split")["image"]
    }
    check_apart(parts)


def test_official_splits_of_single_cells_are_apart_but_for_one_file_that_is_there_twice(real_data: Path) -> None:
    forms = {"mll_marrow": TableForm(0.085), "pbc_cells": TableForm(0.1018, leave_out=("platelet", "PMY_497134.jpg"))}
    for table, form in forms.items():
        path = real_data / f"{table}.parquet"
        check_apart({split: prints_of_cells(read_crop_table(path, split, form)) for split in ("train", "val", "test")})
    kept = TableForm(0.1018, leave_out=("platelet",))
    cells = {split: prints_of_cells(read_crop_table(path, split, kept)) for split in ("train", "val")}
    with pytest.raises(ValueError, match=r"1 pairs: .*PMY_586364.jpg and .*PMY_497134.jpg \(the same file\)"):
        check_apart(cells)


def test_copies_that_are_augmented_are_known_where_they_are_pooled(real_data: Path, tmp_path: Path) -> None:
    """The augmented Kaggle set, pooled and split at random."""
    table = pd.read_parquet(real_data / "blood_cells_80x60.parquet")
    table = table[table["split"] == "train"].sample(6000, random_state=0)
    pictures = []
    for number, content in enumerate(table["jpeg"]):
        (tmp_path / f"{number}.jpg").write_bytes(content)
        pictures.append(LabelledPicture(tmp_path / f"{number}.jpg", np.zeros((0, 4), np.float32), ()))
    with pytest.raises(ValueError, match=r"train and held share sources, \d+ pairs: .*\.jpg and .*\.jpg"):
        check_apart({"train": prints_of(pictures[:3000]), "held": prints_of(pictures[3000:])})
    train, held = divide(pictures[:400], 0.1, 0)
    assert (len(train) + len(held), 0 < len(held) < 60) == (400, True)
    check_apart({"train": prints_of(train), "held": prints_of(held)})
