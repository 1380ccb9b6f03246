"""A committed count as data: complete as JSON, and named where it is broken."""

import json
from datetime import datetime

import pytest
from fixture_types import Commit
from upath import UPath

from wbc.counting.report import outcome_json, read_report, report_json
from wbc.counting.slide import SlideOutcome
from wbc.storage.layout import Layout
from wbc.storage.tables import FailedField
from wbc.taxonomy import load_taxonomy


def test_json_holds_all_and_is_json(commit: Commit) -> None:
    marrow = load_taxonomy("marrow_icsh")
    myeloid = next(t.name for t in marrow.cell_types if t.me_side == "myeloid" and not marrow.children(t.name))
    out = commit("m", {myeloid: 30}, marrow, (FailedField("f.jpg", "is empty"),))
    told = json.loads(json.dumps(report_json(read_report(out, "m")), allow_nan=False))
    assert told["me_ratio"] is None
    assert told["me_high"] is None
    assert told["me_low"] > 0
    assert told["failed_fields"] == [{"field": "f.jpg", "reason": "is empty"}]
    assert datetime.fromisoformat(told["counted_at"]).tzinfo is not None
    assert [kind["cell_type"] for kind in told["differential"]] == [t.name for t in marrow.cell_types]
    assert sum(kind["count"] for kind in told["differential"] if kind["cell_type"] == myeloid) == 30


def test_json_of_a_failed_slide_says_why_and_has_no_numbers() -> None:
    failed = SlideOutcome("s", "failed", 3, 0, (), 1.0, "No space left on device")
    assert outcome_json(failed, None) == {"slide_id": "s", "status": "failed", "reason": "No space left on device"}


def test_only_committed_slides_are_listed(commit: Commit) -> None:
    assert Layout(UPath("memory://there/is/none")).slide_ids() == []
    out = commit("b", {})
    commit("a", {})
    (out / "slides" / ".c.parquet.0.tmp").write_bytes(b"half")
    assert Layout(out).slide_ids() == ["a", "b"]


def test_a_broken_or_missing_count_is_named(commit: Commit) -> None:
    out = commit("a", {})
    with pytest.raises(FileNotFoundError):
        read_report(out, "b")
    path = out / "differentials" / "a.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a\.parquet"):
        read_report(out, "a")
