"""The count-slides flow where slides fail, moments are bad and workers die: what is tried again, and what it costs."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import dask
import pytest
from counted_runs import Notes, assert_equal, newest_artifact, statuses
from distributed import Client, LocalCluster
from fixture_types import RunFlow
from jobs import counted_on_threads, temporaries
from prefect import task_engine
from prefect.client.schemas.objects import State, TaskRun
from upath import UPath

from benchmarks.counted import read_tables
from flows import stages
from flows.count_slides import NothingCounted, listening
from flows.slide_table import markdown_text

pytestmark = pytest.mark.dask


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
