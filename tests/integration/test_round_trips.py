"""All boxes of real data sets, from form to form and back: the same pictures, names and boxes to 0.01 px."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from wbc.datasets.coco import read_coco, write_coco
from wbc.datasets.geojson import read_geojson, write_geojson
from wbc.datasets.labels import LabelledPicture
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
