"""What a count says on a terminal and as JSON: complete, legible, and safe whatever files are called."""

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from upath import UPath

from wbc.counting.report import (
    LogLines,
    ProgressBar,
    counted_slides,
    failures,
    outcome_json,
    read_report,
    report_json,
    report_table,
)
from wbc.counting.slide import SlideOutcome
from wbc.storage.tables import FailedField
from wbc.taxonomy import Taxonomy, load_taxonomy

Commit = Callable[..., UPath]


@pytest.fixture
def commit(tmp_path: Path, commit_slide: Callable[..., None]) -> Commit:
    """Commits a slide with these numbers of cells to OUT, which it returns."""

    def committed(
        slide_id: str, cells: Mapping[str, int], taxonomy: Taxonomy | None = None, failed: tuple[FailedField, ...] = ()
    ) -> UPath:
        out = UPath(tmp_path / "out")
        kinds = [kind for kind, n in cells.items() for _ in range(n)]
        commit_slide(out, slide_id, kinds, taxonomy=taxonomy, failed=failed)
        return out

    return committed


def printed(shown: RenderableType) -> list[str]:
    sink = io.StringIO()
    Console(file=sink, width=80).print(shown)
    return sink.getvalue().splitlines()


def test_a_table_shows_counts_percentages_and_limits(commit: Commit) -> None:
    # 20 of 200: Rümke's table says 6.2 to 15.0.
    out = commit("slide-01", {"segmented_neutrophil": 170, "band_neutrophil": 10, "eosinophil": 20, "rbc": 4321})
    lines = [line.rstrip() for line in printed(report_table(read_report(out, "slide-01")))]
    rows = {line.split("  ")[0].strip(): line.split() for line in (raw.strip() for raw in lines) if line}
    assert lines[0].startswith("slide-01")
    assert "10 of 10 fields" in lines[0]
    assert "200 cells in the differential" in lines[0]
    assert rows["eosinophil"][1:] == ["20", "10.0", "6.2", "–", "15.0"]
    assert rows["neutrophil"][1:3] == ["180", "90.0"]
    assert rows["rbc"][1:] == ["4,321", "beside"]
    assert all(len(line) <= 80 for line in lines)


def test_finer_kinds_stand_below_their_parent_and_only_where_seen(commit: Commit) -> None:
    out = commit("s", {"segmented_neutrophil": 5, "lymphocyte": 5})
    lines = printed(report_table(read_report(out, "s")))
    kinds = [line.strip().split("  ")[0] for line in lines]
    assert kinds.index("segmented neutrophil") == kinds.index("neutrophil") + 1
    indent = {line.strip().split("  ")[0]: len(line) - len(line.lstrip()) for line in lines}
    assert indent["segmented neutrophil"] > indent["neutrophil"] == indent["lymphocyte"]
    assert "band neutrophil" not in indent
    assert "basophil" in indent, "a kind that was looked for and not found has limits worth knowing"
    assert "platelet" not in indent


def test_a_laboratorys_own_taxonomy_is_shown_without_its_file(commit: Commit) -> None:
    own = replace(load_taxonomy("blood"), name="our_lab")
    text = "\n".join(printed(report_table(read_report(commit("s", {"eosinophil": 3}, own), "s"))))
    assert "eosinophil" in text
    assert "our_lab" in text
    assert "basophil" not in text


def test_ratios_flags_and_failed_fields_are_told(commit: Commit) -> None:
    marrow = load_taxonomy("marrow_icsh")
    failed = (FailedField("a\x1b[31m\n.jpg", "is empty"),)
    myeloid = next(t.name for t in marrow.cell_types if t.me_side == "myeloid" and not marrow.children(t.name))
    text = "\n".join(printed(report_table(read_report(commit("m", {myeloid: 30}, marrow, failed), "m"))))
    assert "M:E       undefined" in text
    assert "inf)" in text
    assert "below_500" in text
    assert "fields_failed" in text
    assert r"a\x1b[31m\n.jpg: is empty" in text
    assert "9 of 10 fields" in text

    blood = "\n".join(printed(report_table(read_report(commit("b", {"lymphocyte": 50, "erythroblast": 1}), "b"))))
    assert "2.0 per 100 white cells" in blood


def test_a_slide_without_cells_has_no_percentages(commit: Commit) -> None:
    text = "\n".join(printed(report_table(read_report(commit("s", {}), "s"))))
    assert "no_cells" in text
    assert "0.0" not in text
    assert "None" not in text


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
    assert counted_slides(UPath("memory://there/is/none")) == []
    out = commit("b", {})
    commit("a", {})
    (out / "slides" / ".c.parquet.0.tmp").write_bytes(b"half")
    assert counted_slides(out) == ["a", "b"]


def test_a_broken_or_missing_count_is_named(commit: Commit) -> None:
    out = commit("a", {})
    with pytest.raises(FileNotFoundError):
        read_report(out, "b")
    path = out / "differentials" / "a.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"a\.parquet"):
        read_report(out, "a")


FAILED = (FailedField("f1.jpg", "is empty"), FailedField("", "the folder holds no image"))


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (SlideOutcome("s", "counted", 2, 9, (), 1.0), []),
        (SlideOutcome("s", "counted", 2, 9, FAILED, 1.0), ["s: f1.jpg: is empty", "s: the folder holds no image"]),
        (SlideOutcome("s", "failed", 2, 0, (), 1.0, "disk\nfull"), [r"s: not counted: disk\nfull"]),
    ],
)
def test_failures_name_slide_field_and_reason(outcome: SlideOutcome, expected: list[str]) -> None:
    assert failures(outcome) == expected


OUTCOMES = (
    SlideOutcome("s1", "counted", 4, 40, (FailedField("f.jpg", "is empty"),), 2.5),
    SlideOutcome("s2", "unchanged", 3, 30, (), 0.0),
    SlideOutcome("s3", "failed", 2, 0, (), 0.1, "worker\ndied"),
)


def test_a_log_has_one_line_a_slide() -> None:
    sink = io.StringIO()
    lines = LogLines(Console(file=sink, width=40))
    lines.slides_found(3, 9)
    for outcome in OUTCOMES:
        lines.fields_done(3, 40)
        lines.slide_done(outcome)
    told = sink.getvalue().splitlines()
    assert len(told) == 4
    assert told[0].endswith("3 slides with 9 fields")
    assert told[1].endswith("s1: counted: 4 fields, 40 cells, 2.5 s, 1 failed")
    assert "s2: unchanged: 3 fields, 30 cells" in told[2]
    assert told[3].endswith(r"s3: failed: worker\ndied")


def test_a_bar_counts_slides_fields_and_cells_a_second() -> None:
    sink = io.StringIO()
    with ProgressBar(Console(file=sink, force_terminal=True, width=120, color_system=None)) as bar:
        bar.slides_found(3, 9)
        bar.fields_done(3, 40)
        for outcome in OUTCOMES[:2]:
            bar.slide_done(outcome)
    last = sink.getvalue().split("\x1b[2K")[-1]
    assert "2/3" in last
    assert "7/9" in last, "a field that failed, and those of an unchanged slide, are done"
    assert "cells/s" in last
