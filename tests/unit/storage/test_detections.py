"""What a count is made from comes back as it was written: the very numbers, whatever the models were."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wbc.storage.categorical import Categorical
from wbc.storage.detections import (
    Evidence,
    FieldRow,
    Kinds,
    Origin,
    SlideDetections,
    detections_table,
    evidence_of,
    fields_table,
)
from wbc.storage.tables import FieldSeconds

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
finite = st.floats(0, 1e4, width=32)


@st.composite
def evidence(draw: st.DrawFn) -> Evidence:
    """A slide's detections by one classifier, or none, and its fields."""
    n, kinds = draw(st.integers(0, 6)), tuple(draw(st.lists(names, max_size=4, unique=True)))
    files = Categorical.of(draw(st.lists(names, min_size=n, max_size=n)))
    probabilities = draw(arrays(np.float16, (n, len(kinds)), elements=st.floats(0, 1, width=16)))
    if n and kinds:
        probabilities[draw(arrays(np.bool_, n))] = np.nan
    detections = SlideDetections(
        files,
        draw(arrays(np.float32, (n, 4), elements=finite)),
        Categorical.of(draw(st.lists(names, min_size=n, max_size=n))),
        draw(arrays(np.float32, n, elements=st.floats(0, 1, width=32))),
        probabilities,
        draw(arrays(np.float32, n, elements=st.floats(0, 9, width=32) | st.just(np.nan))),
        Categorical.of(draw(st.lists(st.sampled_from(["", "0f", "a1"]), min_size=n, max_size=n))),
    )
    known = Kinds(kinds, draw(st.floats(0, 1)), draw(st.none() | st.floats(0, 1)), 4.5) if kinds else None
    origin = Origin(draw(st.none() | names), "d", draw(st.none() | names), 0.05, 2, "bfloat16", known)
    rows = [
        FieldRow("a", "0" * 64, "counted", FieldSeconds(1, 2, 3, 4), 240, 320, draw(st.none() | finite), "given", n),
        FieldRow("b", None, "failed", FieldSeconds(), reason=draw(names), red_cell_um=draw(st.none() | finite)),
        FieldRow("c", "1" * 64, "duplicate", FieldSeconds(0.1), 240, 320, duplicate_of="a"),
    ]
    return Evidence("s1", tuple(rows[: draw(st.integers(0, 3))]), detections, origin)


def through_a_file(table: pa.Table) -> pa.Table:
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return pq.read_table(sink)


@given(evidence())
def test_evidence_comes_back_as_it_was_written(given: Evidence) -> None:
    fields = through_a_file(fields_table("s1", given.fields))
    detections = through_a_file(detections_table("s1", given.detections, given.origin))
    back = evidence_of("s1", fields, detections)
    assert (back.slide_id, back.fields, back.origin) == (given.slide_id, given.fields, given.origin)
    assert list(back.detections.fields) == list(given.detections.fields)
    assert list(back.detections.classes) == list(given.detections.classes)
    assert list(back.detections.prints) == list(given.detections.prints)
    for name in ("boxes", "scores", "probabilities", "distances"):
        seen, written = getattr(back.detections, name), getattr(given.detections, name)
        assert seen.dtype == written.dtype
        np.testing.assert_array_equal(seen, written)


def test_fields_of_an_older_version_lack_what_it_did_not_write() -> None:
    row = FieldRow("a", "0" * 64, "counted", FieldSeconds(1, 2, 3, 4), 240, 320, 0.2, "given", 3, red_cell_um=7.5)
    older = fields_table("s1", [row]).drop_columns("red_cell_um")
    detections = detections_table("s1", SlideDetections.empty(), Origin("i", "d", None, 0.05, 2))
    read = evidence_of("s1", older, detections.drop_columns("print"))
    assert read.fields == (replace(row, red_cell_um=None),)
    assert len(read.detections.prints) == 0


@given(evidence())
def test_parts_put_together_are_the_whole(given: Evidence) -> None:
    whole = given.detections
    half = np.arange(len(whole)) < len(whole) // 2
    again = SlideDetections.concatenate([SlideDetections.empty(), whole.take(half), whole.take(~half)])
    assert list(again.fields) == list(whole.fields)
    assert list(again.classes) == list(whole.classes)
    assert list(again.prints) == list(whole.prints)
    np.testing.assert_array_equal(again.boxes, whole.boxes)
    if len(whole):
        np.testing.assert_array_equal(again.probabilities, whole.probabilities)
        np.testing.assert_array_equal(again.distances, whole.distances)


def test_tables_that_tell_no_origin_are_refused() -> None:
    origin = Origin("i", "d", None, 0.05, 2)
    detections = detections_table("s1", SlideDetections.empty(), origin)
    with pytest.raises(ValueError, match="s1: fields and detections cannot be read"):
        evidence_of("s1", fields_table("s1", ()), detections.replace_schema_metadata(None))
    assert evidence_of("s1", fields_table("s1", ()), detections).origin == origin


def test_detections_whose_parts_do_not_agree_are_refused() -> None:
    none, one = np.zeros(2, np.float32), Categorical.of("a")
    with pytest.raises(ValueError, match="1 fields"):
        SlideDetections(one, np.zeros((2, 4), np.float32), one, none, np.zeros((2, 0), np.float16), none, one)
