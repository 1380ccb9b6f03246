"""Every format is told by its look, read leniently or strictly, and written so that it is read alike."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from wbc.cli.main import app
from wbc.datasets.formats import WRITERS, CellTypeNames, Source, format_of, read_source, write_pictures
from wbc.datasets.labels import LabelledPicture
from wbc.taxonomy import load_taxonomy

NAMES = CellTypeNames(load_taxonomy("blood"))
TARGETS = {"coco": "c.json", "via": "v.json", "geojson": "g", "cvat": "c.xml", "label_studio": "l.json"}
DEEP = "<a>" * 200_000
LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;">]><annotations>&c;</annotations>'


@pytest.fixture
def pictures(tmp_path: Path) -> list[LabelledPicture]:
    for name in ("s1/a.png", "s2/b.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("RGB", (100, 80), (len(name), 7, 9)).save(tmp_path / name)
    boxes = np.array([[1.25, 2.5, 30.125, 40], [50, 20, 99.9, 79.5]], np.float32)
    none = LabelledPicture(tmp_path / "s2" / "b.png", boxes[:0], ())
    return [LabelledPicture(tmp_path / "s1" / "a.png", boxes, ("band_neutrophil", "rbc")), none]


@pytest.mark.parametrize("form", WRITERS)
def test_what_is_written_is_known_and_read_alike(pictures: list[LabelledPicture], tmp_path: Path, form: str) -> None:
    target = tmp_path / TARGETS[form]
    write_pictures(target, pictures, tmp_path, form)
    assert format_of(target) == form
    for read in (read_source(Source(target, tmp_path, NAMES)), read_source(Source(target, tmp_path, NAMES), [])):
        assert [(p.path, p.labels) for p in read] == [(p.path, p.labels) for p in pictures]
        np.testing.assert_allclose(read[0].boxes, pictures[0].boxes, atol=1e-4)


@pytest.mark.parametrize("form", ["coco", "via", "geojson", "cvat"])
def test_measurements_are_written_and_do_not_confuse_who_reads(
    pictures: list[LabelledPicture], tmp_path: Path, form: str
) -> None:
    measured = replace(pictures[0], measurements=({"score": 0.875, "cell_id": 4}, {"score": 0.5, "cell_id": 5}))
    write_pictures(tmp_path / TARGETS[form], [measured], tmp_path, form)
    files = [p for p in [tmp_path / TARGETS[form], *tmp_path.rglob("*.geojson")] if p.is_file()]
    assert any("0.875" in path.read_text() for path in files)
    assert read_source(Source(tmp_path / TARGETS[form], tmp_path, NAMES))[0].labels == measured.labels


def test_label_studio_gets_predictions_which_are_no_annotations(
    pictures: list[LabelledPicture], tmp_path: Path
) -> None:
    scored = replace(pictures[0], measurements=({"score": 0.9}, {"score": 0.25}))
    write_pictures(tmp_path / "l.json", [scored], tmp_path, "label_studio")
    (task,) = json.loads((tmp_path / "l.json").read_text())
    assert [region["score"] for region in task["predictions"][0]["result"]] == [0.9, 0.25]
    assert "annotations" not in task
    assert read_source(Source(tmp_path / "l.json", tmp_path, NAMES)) == []


def test_labels_are_forgiven_capitals_spaces_and_plurals() -> None:
    assert [NAMES[n] for n in ("RBC", "Segmented Neutrophils", "Platelets", "wbc", "band-neutrophil")] == [
        "rbc",
        "segmented_neutrophil",
        "platelet",
        "wbc",
        "band_neutrophil",
    ]
    assert "fly" not in NAMES
    assert CellTypeNames(load_taxonomy("blood"), {"fly": "platelet"})["fly"] == "platelet"


SHAPES = [
    ('<box label="RBC" xtl="10" ytl="20" xbr="30" ybr="40"/>', (10, 20, 30, 40)),
    ('<box label="RBC" xtl="10" ytl="20" xbr="30" ybr="60" rotation="90"/>', (0, 30, 40, 50)),
    ('<ellipse label="RBC" cx="50" cy="40" rx="20" ry="10"/>', (30, 30, 70, 50)),
    ('<polygon label="RBC" points="5,1;9,2;7,8"/>', (5, 1, 9, 8)),
    ('<mask label="RBC" rle="1, 2" left="3" top="4" width="5" height="6"/>', (3, 4, 8, 10)),
]


@pytest.mark.parametrize(("shape", "box"), SHAPES)
def test_every_shape_of_cvat_has_its_box(pictures: list[LabelledPicture], shape: str, box: tuple[float, ...]) -> None:
    folder = pictures[0].path.parent
    (folder / "c.xml").write_text(f'<annotations>\n<image id="0" name="a.png">{shape}</image></annotations>')
    (read,) = read_source(Source(folder / "c.xml", folder, NAMES))
    np.testing.assert_allclose(read.boxes, [box], atol=1e-5)


def studio(kind: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    region = {"id": "r", "type": kind, "original_width": 200, "original_height": 100, "value": value | {kind: ["RBC"]}}
    old = {"result": [], "was_cancelled": False}
    done = {"result": [region], "was_cancelled": False}
    gone = {"result": [], "was_cancelled": True}
    return [{"id": 3, "data": {"image": "/data/upload/1/0123abcd-a.png"}, "annotations": [old, done, gone]}]


@pytest.mark.parametrize(
    ("kind", "value", "box"),
    [
        ("rectanglelabels", {"x": 5, "y": 10, "width": 10, "height": 20, "rotation": 0}, (10, 10, 30, 30)),
        ("rectanglelabels", {"x": 20, "y": 20, "width": 10, "height": 10, "rotation": 90}, (30, 20, 40, 40)),
        ("ellipselabels", {"x": 25, "y": 40, "radiusX": 5, "radiusY": 20}, (40, 20, 60, 60)),
        ("polygonlabels", {"points": [[1, 1], [5, 2], [3, 8]]}, (2, 1, 10, 8)),
    ],
)
def test_every_shape_of_label_studio_has_its_box(
    pictures: list[LabelledPicture], kind: str, value: dict[str, Any], box: tuple[float, ...]
) -> None:
    folder = pictures[0].path.parent
    (folder / "l.json").write_text(json.dumps(studio(kind, value)))
    (read,) = read_source(Source(folder / "l.json", folder, NAMES))
    np.testing.assert_allclose(read.boxes, [box], atol=1e-4)


def test_datumaro_is_read(pictures: list[LabelledPicture]) -> None:
    folder = pictures[0].path.parent
    shapes = [
        {"id": 0, "type": "bbox", "label_id": 1, "bbox": [10, 20, 20, 20]},
        {"id": 1, "type": "polygon", "label_id": 0, "points": [5, 1, 9, 2, 7, 8]},
        {"id": 2, "type": "ellipse", "label_id": 0, "points": [30, 30, 70, 50]},
        {"id": 3, "type": "label", "label_id": 0},
    ]
    items = [{"id": "a", "annotations": shapes, "image": {"path": "a.png"}}]
    labels = {"label": {"labels": [{"name": "WBC"}, {"name": "RBC"}]}}
    for item in (items[0], {k: v for k, v in items[0].items() if k != "image"}):
        (folder / "d.json").write_text(json.dumps({"categories": labels, "items": [item]}))
        (read,) = read_source(Source(folder / "d.json", folder, NAMES))
        assert read.labels == ("rbc", "wbc", "wbc")
        np.testing.assert_allclose(read.boxes, [[10, 20, 30, 40], [5, 1, 9, 8], [30, 30, 70, 50]])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.xml", "<annotations><image>", r"a\.xml: not XML \(.*line 1"),
        ("a.xml", DEEP, r"a\.xml: not XML \(line 1: elements nest deeper than 100"),
        ("a.xml", LAUGHS, r"a\.xml: not XML \(line 1: a document type is declared"),
        ("a.xml", "<annotation/>", "name the folder"),
        ("a.xml", "<annotations><track/></annotations>", "not CVAT for images"),
        ("a.json", "{" * 100_000, "not JSON"),
        ("a.json", '{"a":' * 100_000, "not JSON"),
        ("a.json", "3", "neither COCO nor"),
        ("a.bin", "", "its format is not known"),
    ],
)
def test_what_cannot_be_read_at_all_is_named(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    for faults in (None, list[str]()):
        with pytest.raises(ValueError, match=reason):
            read_source(Source(tmp_path / name, tmp_path, NAMES), faults)


# The command


@pytest.fixture
def wbc() -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(app, ["annotations", *map(str, words)])


@pytest.fixture
def wrong(tmp_path: Path, pictures: list[LabelledPicture]) -> Path:
    """A COCO file with one of each fault."""
    write_pictures(tmp_path / "c.json", pictures, tmp_path, "coco")
    content = json.loads((tmp_path / "c.json").read_text())
    content["images"].append({"id": 9, "file_name": "gone.png"})
    content["categories"].append({"id": 8, "name": "fly"})
    for number, (bbox, category) in enumerate(
        [([5, 5, 0, 9], 2), ([200, 5, 9, 9], 2), ([90, 5, 30, 9], 2), ([50, 20, 49.9, 59.5], 2), ([1, 1, 9, 9], 8)], 11
    ):
        content["annotations"].append({"id": number, "image_id": 1, "category_id": category, "bbox": bbox})
    content["annotations"].append({"id": 16, "image_id": 77, "category_id": 2, "bbox": [1, 1, 2, 2]})
    (tmp_path / "c.json").write_text(json.dumps(content))
    return tmp_path / "c.json"


def test_check_names_all_that_is_wrong_and_convert_keeps_the_rest(
    wrong: Path, tmp_path: Path, wbc: Callable[..., Result]
) -> None:
    for told in (wbc("check", wrong), wbc("convert", wrong, tmp_path / "v.json", "--to", "via")):
        assert told.exit_code == 3
        for line in (
            "annotation 11: box of rbc in a.png has no area: left out",
            "annotation 12: box of rbc lies outside of the picture of 100×80 px: left out",
            "annotation 13: box of rbc leaves the picture of 100×80 px: cut",
            "annotation 14: box of rbc in a.png is drawn twice: left out",
            "annotation 15: label 'fly' is none of",
            "annotation 16: there is no image 77",
            "gone.png is missing",
        ):
            assert line in told.stderr
        assert "3 annotations on 2 pictures can be used" in told.stdout
    assert wbc("check", tmp_path / "v.json").exit_code == 0
    told = wbc("check", wrong, "--name", "fly=platelet")
    assert "'fly'" not in told.stderr


def test_splits_that_share_a_source_are_named(
    pictures: list[LabelledPicture], tmp_path: Path, wbc: Callable[..., Result]
) -> None:
    rng = np.random.default_rng(0)
    for name, pixels in (("a", rng.integers(0, 255, (8, 8, 3))), ("c", rng.integers(0, 255, (8, 8, 3)))):
        large = Image.fromarray(pixels.astype(np.uint8)).resize((100, 100))
        large.save(tmp_path / f"{name}.png")
        large.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"{name}-turned.jpg")
    names = ["a.png", "a-turned.jpg", "c.png"]
    labelled = [LabelledPicture(tmp_path / n, pictures[0].boxes, pictures[0].labels) for n in names]
    write_pictures(tmp_path / "c.json", labelled, tmp_path, "coco")
    for side, stems in (("train", "a"), ("turned", "a-turned"), ("other", "c")):
        (tmp_path / f"{side}.txt").write_text(stems)
    splits = {side: ("--split", f"{side}={tmp_path / side}.txt") for side in ("train", "turned", "other")}
    assert wbc("check", tmp_path / "c.json", *splits["train"], *splits["other"]).exit_code == 0
    told = wbc("check", tmp_path / "c.json", *splits["train"], *splits["turned"])
    assert told.exit_code == 3
    assert "train and turned share sources, 1 pairs: " in told.stderr
    assert wbc("check", tmp_path / "c.json", "--split", "train").exit_code == 2


def test_nothing_and_one_type_alone_are_said(
    pictures: list[LabelledPicture], tmp_path: Path, wbc: Callable[..., Result]
) -> None:
    write_pictures(tmp_path / "none.json", pictures[1:], tmp_path, "coco")
    told = wbc("check", tmp_path / "none.json")
    assert (told.exit_code, "no annotation that can be used" in told.stderr) == (3, True)
    one = replace(pictures[0], boxes=pictures[0].boxes[:1], labels=("rbc",))
    write_pictures(tmp_path / "one.json", [one], tmp_path, "coco")
    told = wbc("check", tmp_path / "one.json")
    assert (told.exit_code, "every annotation is rbc" in told.stderr) == (0, True)
    told = wbc("add", tmp_path / "none.json", "--store", tmp_path / "store")
    assert (told.exit_code, "no annotation" in told.stderr) == (2, True)
