"""What is added to an annotation store stays as it was added, whoever adds beside it, and is read for training."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from wbc.configs import checked
from wbc.datasets.annotation_store import AnnotationStore, Snapshot
from wbc.datasets.crops import PATCH_PX
from wbc.datasets.labels import LabelledPicture
from wbc.training.classifier import ClassifierConfig
from wbc.training.classifier_data import read_crops
from wbc.training.detector_data import StoreData, load_sources, read_boxes

BOXES = np.array([[10, 10, 50, 50], [40, 20, 90, 70]], np.float32)


def labelled(folder: Path, name: str, grey: int, labels: tuple[str, ...] = ("rbc", "lymphocyte")) -> LabelledPicture:
    """A picture of one grey, with two boxes."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (120, 100), (grey, 0, 0)).save(folder / name)
    return LabelledPicture(folder / name, BOXES[: len(labels)], labels)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AnnotationStore:
    place = UPath(tmp_path / "store") if request.param == "local" else UPath(f"memory://store-{tmp_path.name}")
    return AnnotationStore(place)


def test_what_was_added_is_read_with_who_and_whence(store: AnnotationStore, tmp_path: Path) -> None:
    given = [labelled(tmp_path / "in", "A.PNG", 1), labelled(tmp_path / "in", "b.png", 2, ())]
    added = store.add(given, by="ada", source="tray 7", um_per_px=0.1)
    assert (added.pictures, added.annotations) == (2, 2)
    assert store.shards() == [added.shard]
    read = store.read()
    assert [p.labels for p in read] == [p.labels for p in given]
    assert [p.um_per_px for p in read] == [0.1, 0.1]
    np.testing.assert_array_equal(read[0].boxes, BOXES)
    assert [p.path.read_bytes() for p in read] == [p.path.read_bytes() for p in given]
    facts = store.facts(added.shard)
    assert (facts["by"], facts["source"], facts["annotations"]) == ("ada", "tray 7", 2)
    assert facts["added_at"].endswith("+00:00")


def test_an_empty_store_has_a_snapshot_and_nothing_to_read(store: AnnotationStore) -> None:
    snapshot = store.snapshot()
    assert (snapshot.shards, store.read(), store.count_since(snapshot)) == ((), [], 0)
    assert store.snapshot_of(snapshot.digest) == snapshot


def test_a_snapshot_stays_what_it_was_and_tells_what_came_since(store: AnnotationStore, tmp_path: Path) -> None:
    store.add([labelled(tmp_path, "a.png", 1)], by="ada", source="one")
    first = store.snapshot()
    store.add([labelled(tmp_path, "b.png", 2)], by="ada", source="two")
    assert store.count_since(first) == 2
    assert store.count_since(None) == 4
    assert store.count_since(store.snapshot()) == 0
    assert [len(store.read(s)) for s in (first, store.snapshot(), None)] == [1, 2, 2]
    assert store.snapshot_of(first.digest) == first
    assert first.digest != store.snapshot().digest == Snapshot.of(reversed(store.shards())).digest
    with pytest.raises(ValueError, match="no snapshot f00 was taken here"):
        store.snapshot_of("f00")


def test_a_picture_that_is_labelled_anew_has_its_last_labels(store: AnnotationStore, tmp_path: Path) -> None:
    store.add([labelled(tmp_path, "a.png", 1)], by="ada", source="one")
    first = store.snapshot()
    store.add([labelled(tmp_path, "renamed.png", 1, ("rbc", "monocyte"))], by="bob", source="two")
    assert [p.labels for p in store.read()] == [("rbc", "monocyte")]
    assert [p.labels for p in store.read(first)] == [("rbc", "lymphocyte")]


def test_many_who_add_at_once_lose_nothing(store: AnnotationStore, tmp_path: Path) -> None:
    shared = labelled(tmp_path, "shared.png", 200)
    each = [[shared, labelled(tmp_path, f"{i}.png", i)] for i in range(12)]
    with ThreadPoolExecutor(6) as threads:
        shards = list(threads.map(lambda pictures: store.add(pictures, by="x", source="y").shard, each))
    assert sorted(shards) == store.shards()
    assert len(set(shards)) == 12
    assert len(store.read()) == 13
    assert store.count_since(None) == 48


def test_what_cannot_be_added_leaves_no_shard(store: AnnotationStore, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no picture")
    bad = LabelledPicture(tmp_path / "no.png", BOXES, ("rbc", "rbc"))
    one, other = labelled(tmp_path, "a.png", 1), labelled(tmp_path, "b.png", 1, ("rbc", "monocyte"))
    for pictures, reason in (
        ([], "no annotation to add"),
        ([one, bad], r"no\.png: no picture"),
        ([one, other], r"b\.png and .*a\.png are one picture with different labels"),
    ):
        with pytest.raises(ValueError, match=reason):
            store.add(pictures, by="ada", source="tray")
    assert store.shards() == []
    assert store.add([one, one], by="ada", source="tray").pictures == 1


def test_what_changed_since_it_was_added_is_named(store: AnnotationStore, tmp_path: Path) -> None:
    shard = store.add([labelled(tmp_path, "a.png", 1)], by="ada", source="tray").shard
    (picture,) = store.read()
    content = picture.path.read_bytes()
    for other, reason in ((content + b"x", "this picture is not as it was added"), (None, "this picture is gone")):
        picture.path.unlink() if other is None else picture.path.write_bytes(other)
        with pytest.raises(ValueError, match=rf"{picture.path.stem}.*: {reason}"):
            store.read()
    picture.path.write_bytes(content)
    place = store.path / "shards" / shard
    place.write_bytes(place.read_bytes().replace(b"lymphocyte", b"monocyte"))
    with pytest.raises(ValueError, match=f"{shard}: this shard is not as it was added"):
        store.read()
    place.unlink()
    with pytest.raises(ValueError, match=f"{shard}: this shard is gone"):
        store.read(Snapshot.of([shard]))


def test_a_killed_writer_leaves_nothing_that_is_read(store: AnnotationStore, tmp_path: Path) -> None:
    store.add([labelled(tmp_path, "a.png", 1)], by="ada", source="tray")
    (store.path / "shards" / ".half.json.1234.tmp").write_bytes(b"{")
    assert len(store.shards()) == len(store.read()) == 1


# What trainings read


def data(store: AnnotationStore, **more: object) -> StoreData:
    return checked({"format": "store", "store": str(store.path), **more}, StoreData, "config")


def test_a_detector_sees_white_cells_and_each_scale_apart(store: AnnotationStore, tmp_path: Path) -> None:
    store.add([labelled(tmp_path, "a.png", 1)], by="ada", source="tray", um_per_px=0.09)
    store.add([labelled(tmp_path, "b.png", 2, ("rbc", "band_neutrophil"))], by="ada", source="tray")
    assert [p.labels for p in read_boxes(data(store), tmp_path)] == [("rbc", "wbc"), ("rbc", "wbc")]
    own, by_red_cells = load_sources([data(store, weight=3.0)], tmp_path, ["rbc", "wbc"])
    assert own.um_per_px * own.pixels[0].shape[0] == pytest.approx(0.09 * 100, rel=0.02)
    assert by_red_cells.um_per_px * by_red_cells.pixels[0].shape[0] == pytest.approx(7.2 / 40 * 100, rel=0.02)
    assert own.weight == by_red_cells.weight == 1.5


def test_a_classifier_sees_the_cells_that_have_a_kind(store: AnnotationStore, tmp_path: Path) -> None:
    config = {
        "classes": ["monocyte", "lymphocyte"],
        "builder": "b",
        "taxonomy": "blood",
        "model": {},
        "loop": {"steps": 1, "batch": 1, "rate": 0.1},
    }
    place = {"format": "store", "store": str(store.path), "um_per_px": 0.1}
    plan = checked(config | {"data": [place]}, ClassifierConfig, "config")
    with pytest.raises(ValueError, match="nothing was added to this annotation store"):
        read_crops(plan.data[0], tmp_path)
    store.add([labelled(tmp_path, "a.png", 1, ("wbc", "rbc"))], by="ada", source="tray")
    with pytest.raises(ValueError, match="no white cell with a kind"):
        read_crops(plan.data[0], tmp_path)
    store.add([labelled(tmp_path, "b.png", 2, ("rbc", "monocyte"))], by="ada", source="tray")
    crops = read_crops(plan.data[0], tmp_path)
    assert crops.labels == ("monocyte",)
    assert crops.pixels.shape == (1, PATCH_PX, PATCH_PX, 3)


def test_a_training_may_name_the_snapshot_that_it_learns_from(store: AnnotationStore, tmp_path: Path) -> None:
    store.add([labelled(tmp_path, "a.png", 1)], by="ada", source="one")
    first = store.snapshot().digest
    store.add([labelled(tmp_path, "b.png", 2, ("rbc", "fly"))], by="ada", source="two")
    assert len(read_boxes(data(store, snapshot=first), tmp_path)) == 1
    with pytest.raises(ValueError, match="taxonomy blood does not know 'fly'"):
        read_boxes(data(store), tmp_path)
    assert len(read_boxes(data(store, names={"fly": "wbc"}), tmp_path)) == 2


def test_shards_are_coco_that_others_read(tmp_path: Path) -> None:
    store = AnnotationStore(UPath(tmp_path / "store"))
    store.add([labelled(tmp_path / "in", "a.png", 1)], by="ada", source="tray")
    truth = json.loads((store.path / "shards" / store.shards()[0]).read_text())
    assert (truth["images"][0]["name"], truth["images"][0]["width"]) == ("a.png", 120)
    assert [a["bbox"] for a in truth["annotations"]] == [[10, 10, 40, 40], [40, 20, 50, 50]]
