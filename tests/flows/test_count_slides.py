"""The count-slides flow: its tables, what it tells, what it does about bad slides, workers that die and second runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted_runs import Notes, assert_equal, newest_artifact, newest_page, statuses
from fixture_types import CommitSlide, RunFlow
from jobs import counted_on_threads, temporaries
from PIL import Image
from upath import UPath

from benchmarks.counted import read_tables
from flows import count_slides as flow_module
from flows import slide_table
from flows.count_slides import listening
from wbc.counting import worker
from wbc.storage.counts import change_source

pytestmark = pytest.mark.dask


def test_flow_counts_as_the_library_alone_does_and_tells_it(
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
) -> None:
    out, notes = UPath(tmp_path / "out"), Notes()
    with listening(notes):
        report = run_flow(slides, out)

    assert_equal(read_tables(out), counted_on_threads(slides, UPath(tmp_path / "expected")))
    assert temporaries(out) == []
    assert statuses(report) == {"empty": "failed", "long": "counted", "mixed": "counted"}
    assert [o.slide_id for o in report.failed] == ["empty", "mixed"]
    assert notes.found == [(3, 12)]
    assert sorted(notes.done, key=lambda o: o.slide_id) == list(report.outcomes)
    # Fields hold 5, 6, 7 … cells.
    assert sorted(notes.fields) == [(2, 11), (4, sum(range(10, 14))), (5, sum(range(5, 10)))]

    rows = {row["slide"]: row for row in newest_artifact()}
    assert (rows["long"]["status"], rows["long"]["cells"], rows["long"]["fields"]) == ("counted", sum(range(5, 14)), 9)
    assert rows["mixed"]["what failed"].startswith(r"notes \[1\]\.jpg: is no JPEG\, PNG\, TIFF or BMP image (\/")
    assert rows["mixed"]["failed fields"] == 1
    assert r"fields\_failed" in rows["mixed"]["flags"]
    assert rows["empty"]["what failed"] == "the folder holds no image"


def test_second_run_opens_no_field_and_starts_no_cluster(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, notes = UPath(tmp_path / "out"), Notes()
    first = run_flow(slides, out)

    def forbidden(*_: Any) -> Any:
        raise AssertionError("this is not needed")

    monkeypatch.setattr(flow_module, "open_cluster", forbidden)
    monkeypatch.setattr(worker, "field_content", forbidden)
    with listening(notes):
        second = run_flow(slides, out)
    assert statuses(second) == {"empty": "failed", "long": "unchanged", "mixed": "unchanged"}
    assert [o.n_cells for o in second.outcomes] == [o.n_cells for o in first.outcomes]
    assert [o.failed_fields for o in second.outcomes] == [o.failed_fields for o in first.outcomes]
    assert [o.status for o in notes.done] == ["failed", "unchanged", "unchanged"]
    assert [row["status"] for row in newest_artifact()] == ["failed", "unchanged", "unchanged"]
    assert "are shown" not in newest_page().description

    monkeypatch.setattr(slide_table, "MOST_LINES", 2)
    run_flow(slides, out)
    assert [row["slide"] for row in newest_artifact()] == ["empty", "mixed"]  # something of both failed
    assert "2 slides are shown" in newest_page().description


def test_what_is_not_counted_or_not_there_is_on_the_runs_page(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, commit_slide: CommitSlide
) -> None:
    out = UPath(tmp_path / "out")
    commit_slide(out, "gone", ["rbc"])
    change_source(out, "gone", str(slides / "gone"))
    (slides / "long" / "f_009.webp").write_text("a picture")
    report = run_flow(slides, out)
    assert [(p.path, p.kind) for p in report.remarks.passed_over] == [("long/f_009.webp", "unread_picture")]
    assert [g.slide_id for g in report.remarks.gone] == ["gone"]
    _, gone, shared, passed_over = str(newest_page().description).split("\n\n")
    assert gone.startswith(r"in OUT\, but not there any more\: gone \(")
    assert shared == "2 pictures counted in long and again in mixed"
    assert passed_over == r"passed over\: 1 picture of a kind that is not read\: long\/f\_009\.webp"


def test_only_what_changed_is_counted_again(slides: UPath, tmp_path: Path, run_flow: RunFlow) -> None:
    out = UPath(tmp_path / "out")
    run_flow(slides, out)
    (slides / "mixed" / "notes [1].jpg").unlink()
    assert statuses(run_flow(slides, out)) == {"empty": "failed", "long": "unchanged", "mixed": "counted"}
    assert set(statuses(run_flow(slides, out, force=True)).values()) == {"failed", "counted"}
    assert set(statuses(run_flow(slides, out, verify=True)).values()) == {"failed", "unchanged"}
    assert set(statuses(run_flow(slides, out, min_score=0.9)).values()) == {"failed", "counted"}
    assert set(statuses(run_flow(slides, out, um_per_px=0.2, min_score=0.9)).values()) == {"failed", "counted"}


@pytest.mark.parametrize("changes", [{"min_score": 0.9}, {"taxonomy": "wang2021"}])
def test_another_score_or_taxonomy_opens_no_field_and_starts_no_cluster(
    changes: dict[str, Any],
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, expected, notes = UPath(tmp_path / "out"), UPath(tmp_path / "expected"), Notes()
    run_flow(slides, out)
    run_flow(slides, expected, **changes)

    def forbidden(*_: Any) -> Any:
        raise AssertionError("this is not needed")

    monkeypatch.setattr(flow_module, "open_cluster", forbidden)
    monkeypatch.setattr(worker, "field_content", forbidden)
    with listening(notes):
        report = run_flow(slides, out, **changes)
    assert statuses(report) == {"empty": "failed", "long": "counted", "mixed": "counted"}
    assert_equal(read_tables(out), read_tables(expected))
    assert notes.fields == [(9, sum(range(5, 14))), (2, 11)]
    assert statuses(run_flow(slides, out, **changes)) == {"empty": "failed", "long": "unchanged", "mixed": "unchanged"}


def test_another_score_to_be_drawn_runs_no_model_and_draws_the_new_count(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = UPath(tmp_path / "out")
    run_flow(slides, out, annotate=True)
    monkeypatch.setattr("wbc.cells.detect.detect", None)
    report = run_flow(slides, out, annotate=True, min_score=0.9)
    assert statuses(report) == {"empty": "failed", "long": "counted", "mixed": "counted"}
    assert set(statuses(run_flow(slides, out, annotate=True, min_score=0.9)).values()) == {"failed", "unchanged"}


def test_class_named_in_a_settings_file_is_the_cluster(slides: UPath, tmp_path: Path, run_flow: RunFlow) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        'class = "distributed.LocalCluster"\n[arguments]\nprocesses = false\nn_workers = 1\n'
        'threads_per_worker = 1\ndashboard_address = "127.0.0.1:0"\n'
    )
    report = run_flow(slides, UPath(tmp_path / "out"), scheduler=None, settings=str(site))
    assert set(statuses(report).values()) == {"failed", "counted"}


def test_drawings_are_made_and_made_again_where_they_are_missing_or_old(
    slides: UPath, tmp_path: Path, run_flow: RunFlow
) -> None:
    out = UPath(tmp_path / "out")
    run_flow(slides, out)
    assert not (out / "annotated").exists()
    assert set(statuses(run_flow(slides, out, annotate=True)).values()) == {"failed", "unchanged"}
    drawings = sorted((tmp_path / "out" / "annotated").rglob("*.jpg"))
    assert len(drawings) == 11
    assert set(statuses(run_flow(slides, out, annotate=True)).values()) == {"failed", "unchanged"}

    before = {path: path.stat().st_mtime_ns for path in drawings}
    drawings[0].unlink()
    run_flow(slides, out, annotate=True)
    redrawn = {path.parent.name for path in drawings if path.stat().st_mtime_ns != before[path]}
    assert redrawn == {drawings[0].parent.name}

    run_flow(slides, out, force=True)
    run_flow(slides, out, annotate=True)
    assert all(path.stat().st_mtime_ns > before[path] for path in drawings)
    assert np.asarray(Image.open(drawings[0])).shape == (240, 320, 3)


def test_drawing_that_fails_leaves_the_count(slides: UPath, tmp_path: Path, run_flow: RunFlow) -> None:
    out = UPath(tmp_path / "out")
    out.mkdir()
    (out / "annotated").write_text("in the way")
    report = run_flow(slides, out, annotate=True)
    long = next(o for o in report.outcomes if o.slide_id == "long")
    assert (long.status, long.n_cells) == ("counted", sum(range(5, 14)))
    assert long.reason.startswith(f"not annotated: cannot be written: Not a directory: {out}/annotated/long")


def test_pixels_are_kept_where_asked_and_then_left_alone(
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
) -> None:
    out = UPath(tmp_path / "out")
    run_flow(slides, out, keep_pixels=True)
    kept = sorted(path.name for path in (out / "pixels").iterdir())
    assert kept == ["empty.zarr", "long.zarr", "mixed.zarr"]
    (out / ".wbc" / "pixels" / "killed.zarr").mkdir(parents=True)
    (out / ".wbc" / "pixels" / "killed.zarr" / "zarr.json").write_text("{}")
    (out / "cells" / ".long.parquet.0.tmp").write_text("half")
    run_flow(slides, out)
    assert sorted(path.name for path in (out / "pixels").iterdir()) == kept
    assert not (out / ".wbc" / "pixels").exists()
    assert not (out / "cells" / ".long.parquet.0.tmp").exists()
