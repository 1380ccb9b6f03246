"""A count made of evidence alone; a slide unlike all that the classifier has learnt from is named more strictly."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from wbc.cells.certainty import Certainty
from wbc.counting.tally import Occasion, Rules, Tally, tally
from wbc.storage.categorical import Categorical
from wbc.storage.corrections import Correction
from wbc.storage.detections import Evidence, FieldRow, Kinds, Origin, SlideDetections
from wbc.storage.tables import FieldSeconds, Seconds
from wbc.taxonomy import load_taxonomy
from wbc.unfolding import Confusion

KINDS = Kinds(("lymphocyte", "monocyte"), 0.4, stranger_threshold=0.8, limit=5.0)
CONFUSION = Confusion(("lymphocyte", "monocyte"), np.array([[[90, 10, 0], [5, 95, 0]]] * 3, float))
OCCASION = Occasion("run", datetime(2026, 1, 1, tzinfo=UTC), Seconds(), None)


def count(
    distances: list[float],
    kinds: Kinds = KINDS,
    scores: tuple[float, ...] = (0.9, 0.9, 0.9),
    certainty: Certainty | None = None,
) -> Tally:
    """Three white cells, a lymphocyte with 0.9, 0.7, 0.5, and a red cell, which has no look."""
    sure = np.array([0.9, 0.7, 0.5, np.nan])
    detections = SlideDetections(
        Categorical.repeat("a.png", 4),
        np.tile(np.array([10, 10, 40, 40], np.float32), (4, 1)),
        Categorical.of(["wbc", "wbc", "wbc", "rbc"]),
        np.array([*scores, 0.9], np.float32),
        np.stack([sure, 1 - sure], 1).astype(np.float16),
        np.array([*distances, np.nan], np.float32),
        Categorical.repeat("", 4),
    )
    field = FieldRow("a.png", "0" * 64, "counted", FieldSeconds(), 100, 100, 0.2, "given")
    evidence = Evidence("s1", (field,), detections, Origin("i", "d", "c", 0.05, 3, "float32", kinds))
    return tally(evidence, Rules(load_taxonomy("blood"), 0.7, stranger_certainty=certainty), OCCASION)


def count_fields(distances: list[list[float]]) -> Tally:
    """Cells that the classifier is sure of with 0.7, in fields named by their number, each so far from those known."""
    flat = np.array([far for field in distances for far in field], np.float32)
    codes = np.repeat(np.arange(len(distances), dtype=np.int32), [len(field) for field in distances])
    n = len(flat)
    detections = SlideDetections(
        Categorical(codes, tuple(map(str, range(len(distances))))),
        np.tile(np.array([10, 10, 40, 40], np.float32), (n, 1)),
        Categorical.repeat("wbc", n),
        np.full(n, 0.9, np.float32),
        np.tile(np.array([0.7, 0.3], np.float16), (n, 1)),
        flat,
        Categorical.repeat("", n),
    )
    fields = tuple(
        FieldRow(str(i), f"{i:064}", "counted", FieldSeconds(), 100, 100, 0.2, "given") for i in range(len(distances))
    )
    evidence = Evidence("s1", fields, detections, Origin("i", "d", "c", 0.05, 3, "float32", KINDS))
    return tally(evidence, Rules(load_taxonomy("blood"), 0.7, confusion=CONFUSION), OCCASION)


def test_strange_fields_among_others_say_so_and_only_their_sure_cells_are_named() -> None:
    counted = count_fields([[1.0, 2.0], [2.0, 3.0], [2.0], [7.0, 9.0], [8.0]])
    assert counted.row.flags[-1] == "unfamiliar_fields"
    assert counted.tables["fields"]["unfamiliarity"].to_pylist() == pytest.approx([0.3, 0.5, 0.4, 1.6, 1.6])
    assert counted.tables["cells"]["cell_type"].to_pylist() == ["lymphocyte"] * 5 + ["unidentified"] * 3
    assert counted.tables["differentials"]["percent_corrected"].null_count == len(counted.tables["differentials"])


@pytest.mark.parametrize(
    "distances",
    [
        [[1.0]] * 40 + [[9.0]] * 4,  # a tenth at most
        [[1.0]] * 4 + [[9.0]] * 2,  # two cells tell nothing
        [[1.0, 9.0, 1.0]] * 5,  # strange cells everywhere are the laboratory's own
        [[3.0]] * 12 + [[4.5]] * 6 + [[6.0]] * 6,  # cells vary much, as where these are just beyond the limit
        [[], [2.0]],
    ],
)
def test_familiar_slides_have_odd_cells_too(distances: list[list[float]]) -> None:
    counted = count_fields(distances)
    assert not {"unfamiliar", "unfamiliar_fields"} & set(counted.row.flags)
    assert set(counted.tables["cells"]["cell_type"].to_pylist()) == {"lymphocyte"}
    assert counted.tables["differentials"]["percent_corrected"].null_count < len(counted.tables["differentials"])
    assert counted.tables["fields"]["unfamiliarity"].null_count == distances.count([])


def test_a_strangers_slide_is_strange_as_a_whole() -> None:
    counted = count_fields([[9.0], [9.0, 9.0], [1.0]])
    assert "unfamiliar" in counted.row.flags
    assert "unfamiliar_fields" not in counted.row.flags
    assert set(counted.tables["cells"]["cell_type"].to_pylist()) == {"unidentified"}


def test_types_that_the_classifier_cannot_tell_are_null_and_never_0() -> None:
    counted = count_fields([[1.0, 2.0]])
    rows = {row["cell_type"]: row for row in counted.tables["differentials"].to_pylist()}
    assert (rows["lymphocyte"]["count"], rows["monocyte"]["count"], rows["monocyte"]["percent"]) == (2, 0, 0)
    assert (rows["basophil"]["count"], rows["basophil"]["percent"], rows["basophil"]["ci_high"]) == (None, None, None)
    assert "types_not_told" in counted.row.flags


def test_on_a_strangers_slide_types_without_a_promise_are_not_told() -> None:
    counted = count([9.0] * 3, replace(KINDS, stranger_threshold={"lymphocyte": 0.6}))
    rows = {row["cell_type"]: row["count"] for row in counted.tables["differentials"].to_pylist()}
    assert (rows["lymphocyte"], rows["monocyte"], rows["unidentified"]) == (2, None, 1)


def test_without_a_classifier_kinds_are_not_told() -> None:
    evidence = Evidence("s1", (), one_cell("wbc"), Origin("i", "d", None, 0.05, 3, "float32", None))
    counted = tally(evidence, Rules(load_taxonomy("blood"), 0.7), OCCASION)
    rows = {row["cell_type"]: row["count"] for row in counted.tables["differentials"].to_pylist()}
    assert (rows["lymphocyte"], rows["unidentified"], rows["rbc"]) == (None, 1, 0)
    named = tally(replace(evidence, detections=one_cell("lymphocyte")), Rules(load_taxonomy("blood"), 0.7), OCCASION)
    assert "types_not_told" not in named.row.flags  # the detector names kinds, and nothing says which


def one_cell(name: str) -> SlideDetections:
    unknown = np.full(1, np.nan, np.float32)
    box = np.array([[10, 10, 40, 40]], np.float32)
    score, chances = np.array([0.9], np.float32), np.zeros((1, 0), np.float16)
    return SlideDetections(
        Categorical.of(["a"]), box, Categorical.of([name]), score, chances, unknown, Categorical.repeat("", 1)
    )


def test_where_people_named_every_cell_they_looked_for_every_type() -> None:
    field = FieldRow("a", "0" * 64, "counted", FieldSeconds(), 100, 100, 0.2, "given")
    said = Correction("a", "0" * 64, (10, 10, 40, 40), "plasma_cell", "me", OCCASION.counted_at)
    evidence = Evidence("s1", (field,), one_cell("wbc"), Origin("i", "d", None, 0.05, 3, "float32", None), (said,))
    counted = tally(evidence, Rules(load_taxonomy("marrow_icsh"), 0.7), OCCASION)
    rows = {row["cell_type"]: row["count"] for row in counted.tables["differentials"].to_pylist()}
    assert (rows["plasma_cell"], rows["lymphocyte"]) == (1, 0)
    assert "types_not_told" not in counted.row.flags


def names(counted: Tally) -> list[str]:
    return list(counted.tables["cells"]["cell_type"].to_pylist())[:3]


def test_a_slide_like_those_known_is_named_by_the_usual_threshold() -> None:
    counted = count([4.0, 4.5, 9.0])
    assert counted.row.unfamiliarity == pytest.approx(0.9)
    assert "unfamiliar" not in counted.row.flags
    assert names(counted) == ["lymphocyte"] * 3


def test_a_strangers_slide_says_so_and_only_sure_cells_are_named() -> None:
    counted = count([4.0, 6.0, 9.0])
    assert counted.row.unfamiliarity == pytest.approx(1.2)
    assert "unfamiliar" in counted.row.flags
    assert names(counted) == ["lymphocyte", "unidentified", "unidentified"]
    assert counted.row.n_unidentified == 2


def test_a_stranger_is_given_only_the_names_that_are_promised() -> None:
    kinds = replace(KINDS, stranger_threshold={"lymphocyte": 0.6})
    assert names(count([9.0] * 3, kinds)) == ["lymphocyte", "lymphocyte", "unidentified"]
    assert names(count([9.0] * 3, replace(kinds, stranger_threshold={"monocyte": 0.6}))) == ["unidentified"] * 3
    assert names(count([4.0] * 3, kinds)) == ["lymphocyte"] * 3


def test_scores_on_a_strangers_slide_say_how_often_such_names_are_right() -> None:
    certainty = Certainty({"lymphocyte": (0.9, 0.95, 0.0)})
    scores = count([9.0] * 3, certainty=certainty).tables["cells"]["type_score"].to_pylist()[:3]
    assert scores == pytest.approx([0.95, 0.7, 0.5], abs=1e-3)  # the others are unidentified
    known = count([4.0] * 3, certainty=certainty).tables["cells"]["type_score"].to_pylist()[:3]
    assert known == pytest.approx([0.9, 0.7, 0.5], abs=1e-3)


def test_only_cells_that_count_tell_how_strange_a_slide_is() -> None:
    assert count([4.0, 99.0, 99.0], scores=(0.9, 0.2, 0.2)).row.unfamiliarity == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("distances", "kinds"), [([np.nan] * 3, KINDS), ([99.0] * 3, Kinds(("lymphocyte", "monocyte"), 0.4))]
)
def test_where_nothing_tells_what_is_strange_nothing_is_said(distances: list[float], kinds: Kinds) -> None:
    counted = count(distances, kinds)
    assert counted.row.unfamiliarity is None
    assert "unfamiliar" not in counted.row.flags
    assert names(counted) == ["lymphocyte"] * 3
