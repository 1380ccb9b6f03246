"""VIA's and QuPath's annotations are read alike, what is written is read back, and what is wrong is named."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wbc.datasets.coco import read_coco, write_coco
from wbc.datasets.geojson import read_geojson, write_geojson
from wbc.datasets.labels import LabelledPicture
from wbc.datasets.via import read_via, shape_box, write_via

SHAPES: list[tuple[dict[str, Any], tuple[float, float, float, float]]] = [
    ({"name": "rect", "x": 10, "y": 20, "width": 30, "height": 40}, (10, 20, 40, 60)),
    ({"name": "circle", "cx": 50.5, "cy": 40, "r": 10}, (40.5, 30, 60.5, 50)),
    ({"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10}, (30, 30, 70, 50)),
    ({"name": "ellipse", "cx": 50, "cy": 40, "rx": 20, "ry": 10, "theta": math.pi / 2}, (40, 20, 60, 60)),
    (
        {"name": "ellipse", "cx": 0, "cy": 0, "rx": 3, "ry": 4, "theta": math.pi / 4},
        (-math.sqrt(12.5), -math.sqrt(12.5), math.sqrt(12.5), math.sqrt(12.5)),
    ),
    ({"name": "polygon", "all_points_x": [5, 9, 7], "all_points_y": [1, 2, 8]}, (5, 1, 9, 8)),
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (100, 80)).save(path)
    return tmp_path / "images"


def region(shape: dict[str, Any], own: Any = None) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": {"cell": "wbc"} if own is None else own}


def via_json(path: Path, regions: Any, *, project: bool = False) -> Path:
    entries = {
        "a.png123": {"filename": "a.png", "size": 123, "regions": regions, "file_attributes": {}},
        "b.png5": {"filename": "b.png", "size": 5, "regions": [], "file_attributes": {}},
    }
    path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": entries} if project else entries))
    return path


def via_csv(path: Path, regions: list[dict[str, Any]]) -> Path:
    columns = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns.split(","))
        for i, one in enumerate(regions):
            shape, own = (json.dumps(one[key]) for key in ("shape_attributes", "region_attributes"))
            rows.writerow(["a.png", 123, "{}", len(regions), i, shape, own])
        rows.writerow(["b.png", 5, "{}", 0, 0, "{}", "{}"])
    return path


@pytest.mark.parametrize(("shape", "box"), SHAPES)
def test_every_shape_of_via_has_its_box(shape: dict[str, Any], box: tuple[float, ...]) -> None:
    assert shape_box(shape, "") == pytest.approx(box)


@pytest.mark.parametrize("form", ["project", "json", "csv"])
def test_via_tells_the_same_in_all_its_forms(images: Path, tmp_path: Path, form: str) -> None:
    regions = [region(shape) for shape, _ in SHAPES]
    path = tmp_path / ("via.csv" if form == "csv" else "via.json")
    written = via_csv(path, regions) if form == "csv" else via_json(path, regions, project=form == "project")
    a, b = read_via(images, written, {"wbc": "lymphocyte"})
    assert (a.path, b.path) == (images / "a.png", images / "b.png")
    assert set(a.labels) == {"lymphocyte"}
    np.testing.assert_allclose(a.boxes, np.array([box for _, box in SHAPES], np.float32), atol=1e-5)
    assert len(b.labels) == 0


def test_the_attribute_that_names_a_cell_is_told_or_the_only_one(images: Path, tmp_path: Path) -> None:
    rect = SHAPES[0][0]
    both = via_json(tmp_path / "via.json", [region(rect, {"quality": "good", "cell": {"blast": True, "rbc": False}})])
    assert read_via(images, both, None, "cell")[0].labels == ("blast",)
    with pytest.raises(ValueError, match=r"via\.json: a\.png, region 1: attributes quality, cell: which one names"):
        read_via(images, both)
    with pytest.raises(ValueError, match="no attribute 'kind' among quality, cell"):
        read_via(images, both, None, "kind")


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ([region({"name": "point", "cx": 1, "cy": 2})], "a.png, region 1: .*is not a rect, circle, ellipse or polygon"),
        ([region({"name": "rect", "x": 1, "y": 2, "width": 3})], "region 1: .*is not a rect"),
        ([region({"name": "rect", "x": "1", "y": 2, "width": 3, "height": 4})], "are not finite numbers"),
        ([region({"name": "circle", "cx": math.nan, "cy": 2, "r": 3})], "are not finite numbers"),
        ([region({"name": "circle", "cx": True, "cy": 2, "r": 3})], "are not finite numbers"),
        ([region({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]})], "is not a rect"),
        ([region(SHAPES[0][0]), region(SHAPES[1][0], {"cell": "fly"})], r"region 2: label 'fly' is none of \['wbc'\]"),
        ([region(SHAPES[0][0], {})], "region 1: {} names no cell"),
        ([region(SHAPES[0][0], {"cell": 3})], "label 3 is not a name"),
        ([region(SHAPES[0][0], {"cell": {"a": True, "b": True}})], "cell has 2 values: a, b"),
        ({"0": region(SHAPES[0][0])}, "not VIA 2 annotations"),
        ([{"shape_attributes": {}}], "not VIA 2 annotations"),
    ],
)
def test_what_is_wrong_with_via_is_named(images: Path, tmp_path: Path, regions: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"via\.json: .*{reason}"):
        read_via(images, via_json(tmp_path / "via.json", regions), {"wbc": "wbc"})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("region_shape_attributes", "shape", "not VIA 2 annotations .*no column region_shape_attributes"),
        ('""rect""', "rect", r"csv:2: not VIA 2"),
        ('""width"": 30', '""width"": null', r"csv:2: .*not finite"),
        ("b.png,5,{},0,0,{},{}", "b.png", "line 3 is cut short"),
        ("b.png", "c.png", r"picture .*c\.png is missing"),
    ],
)
def test_what_is_wrong_with_vias_csv_is_named_with_its_line(
    images: Path, tmp_path: Path, old: str, new: str, reason: str
) -> None:
    path = via_csv(tmp_path / "via.csv", [region(SHAPES[0][0])])
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"via\.csv.*{reason}|{reason}"):
        read_via(images, path)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000, '{"a": 1}'])
def test_what_is_no_json_is_named(images: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(content)
    for read in (read_coco, read_via):
        with pytest.raises(ValueError, match=r"a\.geojson: not "):
            read(images, path)
    with pytest.raises(ValueError, match=r"a\.geojson: "):
        read_geojson(images, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"geometry": {"type": "Point", "coordinates": [1, 2]}}, "no polygon"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], ["x", 1]]]}}, "not finite numbers"),
        ({"geometry": {"type": "Polygon", "coordinates": [[1, 2, 3]]}}, "are not points"),
        ({"properties": {}}, "label None is not a name"),
        ({"properties": {"classification": {"name": "fly"}}}, r"label 'fly' is none of \['wbc'\]"),
    ],
)
def test_what_is_wrong_with_geojson_is_named(images: Path, tmp_path: Path, change: Any, reason: str) -> None:
    picture = LabelledPicture(images / "a.png", np.array([[1, 2, 30, 40]], np.float32), ("wbc",))
    write_geojson(picture, tmp_path / "a.geojson")
    content = json.loads((tmp_path / "a.geojson").read_text())
    content["features"][0] |= change
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.geojson: feature 1: .*{reason}"):
        read_geojson(images, tmp_path, {"wbc": "wbc"})


def test_qupaths_lists_and_single_features_are_read_too(images: Path, tmp_path: Path) -> None:
    picture = LabelledPicture(images / "a.png", np.array([[1, 2, 30, 40]], np.float32), ("wbc",))
    write_geojson(picture, tmp_path / "a.geojson")
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    for content in (features, features[0]):
        (tmp_path / "a.geojson").write_text(json.dumps(content))
        assert read_geojson(images, tmp_path)[0].boxes.tolist() == [[1, 2, 30, 40]]
    (tmp_path / "a.geojson").rename(tmp_path / "z.geojson")
    with pytest.raises(ValueError, match=r"z\.geojson: there is no picture of this name"):
        read_geojson(images, tmp_path)


def test_scores_go_into_qupaths_measurements(images: Path, tmp_path: Path) -> None:
    picture = LabelledPicture(images / "a.png", np.array([[1, 2, 30, 40]], np.float32), ("wbc",))
    write_geojson(replace(picture, measurements=({"score": 0.9},)), tmp_path / "a.geojson")
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["properties"]["measurements"] == {"score": 0.9}
    with pytest.raises(ValueError, match="2 rows of measurements for 1 labels"):
        replace(picture, measurements=({}, {}))


def test_pictures_without_cells_survive_every_form_that_lists_pictures(images: Path, tmp_path: Path) -> None:
    none = [LabelledPicture(images / name, np.zeros((0, 4), np.float32), ()) for name in ("a.png", "b.png")]
    write_coco(tmp_path / "c.json", none, images)
    write_via(tmp_path / "v.json", none, images)
    for read in (read_coco(images, tmp_path / "c.json"), read_via(images, tmp_path / "v.json")):
        assert [p.path for p in read] == [p.path for p in none]
        assert [p.boxes.shape for p in read] == [(0, 4), (0, 4)]


@pytest.mark.parametrize("bbox", [[1, 2, 3], [1, 2, 3, "x"], [1, 2, 3, None], 7])
def test_a_box_of_coco_that_is_none_is_named_with_its_annotation(images: Path, tmp_path: Path, bbox: Any) -> None:
    write_coco(tmp_path / "c.json", [LabelledPicture(images / "a.png", np.ones((1, 4), np.float32), ("wbc",))], images)
    content = json.loads((tmp_path / "c.json").read_text())
    content["annotations"][0]["bbox"] = bbox
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"c\.json: (annotation 1: .*numbers|not COCO)"):
        read_coco(images, tmp_path / "c.json")
