"""The count-slides flow: its tables, what it tells, what it does about bad slides, workers that die and second runs."""

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from fixture_types import CommitSlide, RunFlow
from jobs import counted_on_threads, temporaries
from painted import make_slide
from PIL import Image
from prefect import task_engine
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import ParameterTypeError
from upath import UPath

from benchmarks.counted import read_tables
from flows import count_slides as flow_module
from flows import slide_table, stages
from flows.count_slides import CountReport, NothingCounted, listening
from flows.slide_table import markdown_text
from wbc.counting import worker
from wbc.counting.slide import SlideOutcome
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.storage.counts import change_source
from wbc.storage.lock import OutInUse, holding

pytestmark = pytest.mark.dask

Tables = dict[str, pd.DataFrame]


class Notes:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self.fields: list[tuple[int, int]] = []
        self.done: list[SlideOutcome] = []

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        self.found.append((n_slides, n_fields))

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        self.fields.append((n_fields, n_cells))

    def slide_done(self, outcome: SlideOutcome) -> None:
        self.done.append(outcome)


@pytest.fixture
def slides(tmp_path: Path) -> UPath:
    """A slide of nine fields (two chunks), one of two of which one is a text, and a folder without images."""
    root = UPath(tmp_path / "slides")
    make_slide(root / "long", 9)
    make_slide(root / "mixed", 2)
    (root / "mixed" / "notes [1].jpg").write_text("no picture")
    (root / "empty").mkdir()
    return root


def assert_equal(found: Tables, expected: Tables) -> None:
    for kind, table in expected.items():
        pd.testing.assert_frame_equal(found[kind], table)


def statuses(report: CountReport) -> dict[str, str]:
    return {outcome.slide_id: outcome.status for outcome in report.outcomes}


def newest_page() -> Any:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactCollectionFilter, ArtifactCollectionFilterKey

    ours = ArtifactCollectionFilter(key=ArtifactCollectionFilterKey(any_=["count-slides"]))
    with get_client(sync_client=True) as client:
        (artifact,) = client.read_latest_artifacts(artifact_filter=ours)
    return artifact


def newest_artifact() -> list[dict[str, Any]]:
    artifact = newest_page()
    rows: list[dict[str, Any]] = json.loads(str(artifact.data))
    return rows


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


def test_a_slide_of_another_folder_stops_the_flow_before_a_cluster_starts(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch, commit_slide: CommitSlide
) -> None:
    out = UPath(tmp_path / "out")
    commit_slide(out, "long", ["rbc"])
    change_source(out, "long", "/other/long")
    monkeypatch.setattr(flow_module, "open_cluster", None)
    with pytest.raises(ValueError, match=f"'long' was '/other/long' and is '{slides}/long' now"):
        run_flow(slides, out)


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


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"detector": "/no/such/model"}, ValueError, "/no/such/model"),
        ({"classifier": "bundled:nonesuch"}, ValueError, "bundled:nonesuch"),
        ({"taxonomy": "nonesuch"}, ValueError, "nonesuch"),
        ({"min_score": 2.0}, ParameterTypeError, "min_score: Input should be less"),
        ({"um_per_px": -1.0}, ParameterTypeError, "um_per_px: Input should be greater"),
        ({"workers": 2}, ValueError, "has its workers"),
        ({"settings": "/no/such/file.toml"}, ValueError, "/no/such/file.toml"),
    ],
)
def test_run_that_cannot_be_says_why_before_it_starts(
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow_module, "open_cluster", lambda *_: pytest.fail("a cluster was started"))
    with pytest.raises(error) as raised:
        run_flow(slides, UPath(tmp_path / "out"), **changes)
    assert words in str(raised.value)


def test_model_that_names_what_the_taxonomy_does_not_know_is_refused(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, dark_card: ModelCard
) -> None:
    registry.save(tmp_path / "pottery", builders.build(dark_card), replace(dark_card, classes=("teapot",)))
    with pytest.raises(ValueError, match="teapot"):
        run_flow(slides, UPath(tmp_path / "out"), detector=str(tmp_path / "pottery"))


def test_slides_that_are_not_there_and_out_that_is_a_file(slides: UPath, tmp_path: Path, run_flow: RunFlow) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_flow(slides / "nowhere", UPath(tmp_path / "out"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_flow(slides, UPath(tmp_path / "file"))


def test_slide_that_cannot_be_committed_costs_no_other(
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
) -> None:
    out = UPath(tmp_path / "out")
    (out / "cells" / "long.parquet" / "in the way").mkdir(parents=True)
    report = run_flow(slides, out)
    assert statuses(report) == {"empty": "failed", "long": "failed", "mixed": "counted"}
    failed = next(o for o in report.outcomes if o.slide_id == "long")
    assert "long.parquet" in failed.reason
    assert failed in report.failed
    assert temporaries(out) == []
    row = next(row for row in newest_artifact() if row["slide"] == "long")
    assert (row["status"], row["what failed"]) == ("failed", markdown_text(failed.reason))


@pytest.mark.parametrize(("number", "status", "attempts"), [(errno.EIO, "counted", 3), (errno.ENOSPC, "failed", 1)])
def test_bad_moments_are_tried_again_and_full_disks_are_not(
    number: int,
    status: str,
    attempts: int,
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    real = stages.ingest_slide

    def sometimes(slide: Any, *others: Any) -> Any:
        if slide.slide_id == "long":
            calls.append(slide)
            if len(calls) < 3:
                raise OSError(number, os.strerror(number), "/a/file")
        return real(slide, *others)

    monkeypatch.setattr(stages, "ingest_slide", sometimes)
    monkeypatch.setattr(stages.count, "retry_delay_seconds", 0)
    report = run_flow(slides, UPath(tmp_path / "out"))
    assert statuses(report) == {"empty": "failed", "long": status, "mixed": "counted"}
    assert len(calls) == attempts


@pytest.mark.parametrize(("bad_counts", "status"), [(2, "counted"), (9, "failed")])
def test_each_stage_has_tries_of_its_own_and_those_that_are_done_are_not_done_again(
    bad_counts: int,
    status: str,
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []

    def sometimes(name: str, n_bad: int) -> None:
        real = getattr(stages, name)

        def called(of: Any, *others: Any) -> Any:
            if getattr(of, "slide", of).slide_id == "long":
                calls.append(name)
                if calls.count(name) <= n_bad:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), "/a/file")
            return real(of, *others)

        monkeypatch.setattr(stages, name, called)

    sometimes("ingest_slide", 2)
    sometimes("count_ingested", bad_counts)
    monkeypatch.setattr(stages.count, "retry_delay_seconds", 0)
    report = run_flow(slides, UPath(tmp_path / "out"))
    assert statuses(report) == {"empty": "failed", "long": status, "mixed": "counted"}
    assert calls == ["ingest_slide"] * 3 + ["count_ingested"] * 3


def test_prefect_is_told_of_a_slide_by_its_name_and_three_times(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str | None]] = []
    real = task_engine.emit_task_run_state_change_event

    def noted(task_run: TaskRun, initial_state: Any, validated_state: State[Any], **others: Any) -> Any:
        told.append((task_run.name, validated_state.name))
        return real(task_run, initial_state, validated_state, **others)

    monkeypatch.setattr(task_engine, "emit_task_run_state_change_event", noted)
    run_flow(slides, UPath(tmp_path / "out"))
    later = [(name, state) for name, state in told if state != "Pending"]  # until then, a task has no name of its own
    assert sorted(later) == [(s, state) for s in ("empty", "long", "mixed") for state in ("Completed", "Running")]
    assert len(told) == 9


def test_scheduled_run_that_counted_nothing_fails(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("nothing goes")

    monkeypatch.setattr(stages, "ingest_slide", broken)
    report = run_flow(slides, UPath(tmp_path / "out"))
    assert [o.reason for o in report.outcomes] == ["RuntimeError: nothing goes"] * 3
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "9a0c")
    with pytest.raises(NothingCounted, match=r"3 of 3 slides failed.*nothing goes"):
        run_flow(slides, UPath(tmp_path / "out"))


def test_run_with_failed_slides_ends_under_a_name_of_its_own(slides: UPath, tmp_path: Path, run_flow: RunFlow) -> None:
    state: Any = run_flow(slides, UPath(tmp_path / "out"), return_state=True)
    assert (state.name, state.is_completed()) == ("CompletedWithFailures", True)
    assert state.message == "1 of 3 slides failed; the first: the folder holds no image"
    assert [o.slide_id for o in state.result().failed] == ["empty", "mixed"]
    (slides / "empty").rmdir()
    state = run_flow(slides, UPath(tmp_path / "out"), return_state=True)
    assert state.name == "Completed"


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


def test_a_flow_that_meets_another_run_on_its_out_is_refused_and_touches_nothing(
    slides: UPath, tmp_path: Path, run_flow: RunFlow
) -> None:
    out = UPath(tmp_path / "out")
    group = out / ".wbc" / "pixels" / "night-7" / "long.zarr"
    with holding(out, "night-7"):
        group.mkdir(parents=True)
        with pytest.raises(OutInUse, match=r"is written by .*run night-7 \(process \d+ on .*, since "):
            run_flow(slides, out)
        assert group.exists()
        assert not (out / "cells").exists()


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


@pytest.mark.slow
def test_worker_killed_in_the_middle_changes_nothing(
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
) -> None:
    killed: list[int] = []

    class Killer(Notes):
        def fields_done(self, n_fields: int, n_cells: int) -> None:
            if not killed:
                killed.append(workers.pop())
                os.kill(killed[0], signal.SIGKILL)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
        listening(Killer()),
    ):
        workers = list(client.run(os.getpid).values())
        report = run_flow(slides, UPath(tmp_path / "out"), scheduler=cluster.scheduler_address)
        assert killed
    assert set(statuses(report).values()) == {"failed", "counted"}
    assert_equal(read_tables(UPath(tmp_path / "out")), counted_on_threads(slides, UPath(tmp_path / "expected")))


KILLER = """
import functools, os, signal
from wbc.counting import worker

def deadly(read, path):
    if path.name == "deadly.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path)

def dask_setup(_dask_worker):
    worker.field_content = functools.partial(deadly, worker.field_content)
"""


@pytest.mark.slow
def test_field_that_kills_every_worker_costs_its_slide_alone(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slides / "long" / "f000.png").rename(slides / "long" / "deadly.png")
    (tmp_path / "killer.py").write_text(KILLER)
    monkeypatch.setattr(stages.count, "retry_delay_seconds", 0)
    monkeypatch.setattr(stages.count, "retries", 1)
    site = tmp_path / "site.toml"
    site.write_text(
        'class = "distributed.LocalCluster"\n[arguments]\nn_workers = 1\nthreads_per_worker = 1\n'
        f'dashboard_address = "127.0.0.1:0"\npreload = ["{tmp_path}/killer.py"]\n'
    )
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        report = run_flow(slides, UPath(tmp_path / "out"), scheduler=None, settings=str(site))
    assert statuses(report) == {"empty": "failed", "long": "failed", "mixed": "counted"}
    assert next(o for o in report.outcomes if o.slide_id == "long").reason.startswith("a worker died 1 times in a row")
