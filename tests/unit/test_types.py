"""What cannot be is refused where it is made, with the value in the message."""

import copy
import json
import math
import pickle
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from wbc.models.cards import ModelCard
from wbc.types import ChunkKey, Detections, FieldError, FieldKey, FieldPaths, Slide, Tile


def paths(*names: str) -> tuple[UPath, ...]:
    return tuple(UPath(f"/slides/{name}") for name in names)


@pytest.mark.parametrize("slide_id", ["", "a/b", ".hidden"])
def test_a_slide_id_must_be_a_safe_file_name(slide_id: str) -> None:
    with pytest.raises(ValueError, match="no safe file name"):
        Slide(slide_id, ())


@pytest.mark.parametrize("names", [("b.png", "a.png"), ("a.png", "a.png")])
def test_fields_must_be_sorted_and_distinct(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="not sorted and distinct"):
        Slide("s1", paths(*names))


@pytest.mark.parametrize("um_per_px", [0.0, -0.1, float("nan"), float("inf")])
def test_a_scale_must_be_a_positive_number(um_per_px: float) -> None:
    with pytest.raises(ValueError, match=str(um_per_px)):
        Slide("s1", paths("a.png"), um_per_px)


@pytest.mark.parametrize("names", [(), ("a.png",), ("a b.png", "b\n.png", "é.png", "\udcff.png")])
def test_paths_of_fields_are_those_of_a_tuple(names: tuple[str, ...]) -> None:
    found, same = FieldPaths(UPath("/slides"), names), paths(*names)
    assert (tuple(found), len(found), found.names) == (same, len(same), names)
    assert [found[i] for i in range(len(names))] == list(same)
    assert tuple(found[1:]) == same[1:]
    assert pickle.loads(pickle.dumps(found)) == found == FieldPaths(UPath("/slides"), names)
    assert Slide("s1", found).field_names == Slide("s1", same).field_names == names
    assert {found, FieldPaths(UPath("/slides"), names), FieldPaths(UPath("/others"), names)} == {
        found,
        FieldPaths(UPath("/others"), names),
    }


def test_the_paths_of_a_hundred_thousand_fields_are_half_a_megabyte() -> None:
    tracemalloc.start()
    found = FieldPaths(UPath("/slides"), (f"field-{i:06d}.jpg" for i in range(100_000)))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 100_000
    assert kept < 5e5


def test_keys_name_work_and_travel() -> None:
    chunk = ChunkKey("s1", (2, 3, 7))
    assert chunk.fields() == [FieldKey("s1", i) for i in (2, 3, 7)]
    slide = Slide("s1", paths("a.png"), 0.2)
    assert pickle.loads(pickle.dumps((chunk, slide))) == (chunk, slide)


@given(st.sets(st.integers(0, 1000), min_size=1), st.integers(1, 50))
def test_the_parts_of_a_chunk_are_the_chunk(indices: set[int], size: int) -> None:
    chunk = ChunkKey("s1", tuple(sorted(indices)))
    parts = chunk.cut(size)
    assert [field for part in parts for field in part.fields()] == chunk.fields()
    lengths = [len(part.indices) for part in parts]
    assert len(lengths) == math.ceil(len(indices) / size)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("indices", [(), (4, 3), (3, 3), (-1, 2)])
def test_a_chunk_that_is_empty_or_out_of_order_is_refused(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"chunk {indices} of s1 is empty")):
        ChunkKey("s1", indices)


def test_a_field_before_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        FieldKey("s1", -1)


@pytest.mark.parametrize("values", [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 0, 5), (0, 0, 5, 0)])
def test_a_tile_must_have_pixels(values: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no such tile"):
        Tile(*values)


def test_a_field_error_crosses_processes_with_name_and_one_line_of_reason() -> None:
    error = pickle.loads(pickle.dumps(FieldError("a.jpg", "is\n  broken")))
    assert isinstance(error, FieldError)
    assert (error.name, error.reason) == ("a.jpg", "is broken")
    assert "a.jpg" in str(error)


# Detections


def cells_of(n: int) -> Detections:
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    return Detections(boxes, np.linspace(0, 1, n, dtype=np.float32), np.ones(n, np.int64))


def test_detections_joined_and_taken_apart() -> None:
    both = Detections.concatenate([cells_of(2), Detections.empty(), cells_of(3)])
    assert len(both) == 5
    assert np.array_equal(both.take(np.arange(2, 5)).boxes, cells_of(3).boxes)
    assert np.array_equal(both.take(both.scores >= 1).scores, [1, 1])
    assert len(Detections.concatenate([])) == 0


def test_detections_of_a_tile_are_those_of_its_picture_moved_and_scaled() -> None:
    tile = cells_of(2)
    assert np.array_equal(tile.shifted(100, 50).boxes, tile.boxes + np.array([100, 50, 100, 50]))
    assert np.array_equal(tile.shifted(100, 50).shifted(-100, -50).boxes, tile.boxes)
    larger = tile.scaled(2.0, 0.5, 3, 11)
    assert larger.boxes.tolist() == [[0, 0.5, 4, 1.5], [8, 2.5, 11, 3]]
    assert larger.boxes.dtype == np.float32
    assert np.array_equal(larger.scores, tile.scores)
    assert len(Detections.empty().shifted(1, 2).scaled(0.5, 0.5, 9, 9)) == 0


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [
        (np.zeros((2, 3), np.float32), np.zeros(2, np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4), np.float32), np.zeros(1, np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4), np.float32), np.zeros(2, np.float32), np.zeros(3, np.int64)),
        (np.zeros((2, 4), np.float64), np.zeros(2, np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 4), np.float32), np.zeros(2, np.float32), np.zeros(2, np.int32)),
    ],
)
def test_detections_of_other_shapes_or_dtypes_are_refused(boxes: Any, scores: Any, labels: Any) -> None:
    with pytest.raises(ValueError, match=r"shapes|dtypes"):
        Detections(boxes, scores, labels)


# Model cards


def test_a_card_survives_json(dark_card: ModelCard) -> None:
    assert ModelCard.from_json(json.loads(json.dumps(dark_card.to_json())), "card.json") == dark_card


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"colour": 1}, "colour is unknown; the keys are name, version, "),
        ({"task": "segmenter"}, "task is 'segmenter', none of 'detector', 'classifier'"),
        ({"classes": []}, "empty or repeat"),
        ({"classes": ["rbc", "rbc"]}, "empty or repeat"),
        ({"classes": 3}, "classes is 3, not a list"),
        ({"um_per_px": 0}, "no such preprocessing"),
        ({"um_per_px": float("nan")}, "no such preprocessing"),
        ({"um_per_px": "0.2"}, "um_per_px is '0.2', not a number"),
        ({"input_px": True}, "input_px is True, not an integer"),
        ({"mean": [0.5, 0.5]}, r"mean\[3\] is missing"),
        ({"std": [0.5, 0.0, 0.5]}, "no such preprocessing"),
    ],
)
def test_a_card_that_cannot_be_is_refused(dark_card: ModelCard, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^card\.json: .*{complaint}"):
        ModelCard.from_json(dark_card.to_json() | changes, "card.json")


def test_a_card_names_the_field_it_lacks(dark_card: ModelCard) -> None:
    values = copy.deepcopy(dark_card.to_json())
    del values["builder"]
    with pytest.raises(ValueError, match=r"card\.json: builder is missing"):
        ModelCard.from_json(values, "card.json")


@pytest.mark.parametrize("values", [[], "card", 3, None])
def test_what_is_no_object_is_no_card(values: Any) -> None:
    with pytest.raises(ValueError, match=r"card\.json: this is .*, not a table"):
        ModelCard.from_json(values, "card.json")
