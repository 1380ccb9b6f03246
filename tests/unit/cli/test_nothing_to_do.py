"""`wbc count` over counted slides: the same answers as from the flow, and nothing is loaded that counts."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from jobs import make_job
from painted import make_slide
from typer.testing import CliRunner, Result
from upath import UPath

from wbc.cli import count as count_module
from wbc.cli.main import app
from wbc.counting.annotate import annotate_slide
from wbc.counting.remarks import CountReport, remarks_on
from wbc.counting.slide import Job, WorkSettings, count_slide
from wbc.storage.lock import holding
from wbc.storage.slides import discover, survey
from wbc.storage.tables import arrow_text

Count = Callable[..., Result]
HEAVY = ("torch", "torchvision", "timm", "prefect", "dask", "distributed", "zarr", "pandas", "scipy", "tifffile")


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two slides: s1 of two fields and a text, s2 of one field."""
    make_slide(UPath(tmp_path / "slides" / "s1"), 2)
    make_slide(UPath(tmp_path / "slides" / "s2"), 1, cells=8)
    (tmp_path / "slides" / "s1" / "notes.jpg").write_text("no picture")
    return tmp_path / "slides"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return make_job(UPath(tmp_path / "out"), work=WorkSettings())


@pytest.fixture
def words(slides: Path, job: Job, dark_folder: Path) -> list[str]:
    """What is typed to count the slides, all of which are counted already."""
    with ThreadPoolExecutor(1) as executor:
        for slide in discover(UPath(slides)):
            count_slide(slide, job, executor)
    models = ["--detector", str(dark_folder), "--classifier", "none", "--device", "cpu"]
    return ["count", str(slides), "--out", str(job.out), *models]


@pytest.fixture
def flow_runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each run of the flow, which counts nothing here."""
    runs: list[Any] = []

    def run(asked: Any, *_: Any) -> CountReport:
        runs.append(asked)
        return CountReport(())

    monkeypatch.setattr(count_module, "_run_flow", run)
    monkeypatch.setattr("flows.cluster.prepare", lambda *_: None)
    return runs


def run(words: list[str], *more: str) -> Result:
    return CliRunner().invoke(app, [*words, *more])


def test_nothing_is_loaded_that_counts(words: list[str]) -> None:
    program = (
        "import sys\nfrom wbc.cli.main import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as ending:\n    status = ending.code\n"
        f"print(status, [m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1] == "3 []", ran.stderr


def test_the_tables_tell_again_what_was_counted_and_what_failed(words: list[str], flow_runs: list[Any]) -> None:
    told = run(words, "--json")
    assert flow_runs == []
    assert told.exit_code == 3
    s1, s2 = json.loads(told.stdout)["slides"]
    assert [(s["slide_id"], s["status"], s["n_cells"]) for s in (s1, s2)] == [
        ("s1", "unchanged", 11),
        ("s2", "unchanged", 8),
    ]
    assert [field["field"] for field in s1["failed_fields"]] == ["notes.jpg"]
    found, *lines, missing = told.stderr.splitlines()
    assert found.endswith("2 slides with 4 fields")
    assert [line.split(" ", 1)[1] for line in lines] == [
        "s1: unchanged: 3 fields, 11 cells, 0.0 s, 1 failed",
        "s2: unchanged: 1 field, 8 cells, 0.0 s",
    ]
    assert missing.startswith("s1: notes.jpg: is no JPEG")
    assert "s1  2 of 3 fields" in run(words).stdout


def test_a_slide_that_failed_as_a_whole_fails_again(
    words: list[str], job: Job, slides: Path, flow_runs: list[Any]
) -> None:
    (slides / "s2" / "f000.png").write_text("no picture")
    with ThreadPoolExecutor(1) as executor:
        count_slide(discover(UPath(slides))[1], job, executor)
    told = run(words)
    assert (told.exit_code, flow_runs) == (3, [])
    assert "s2: failed: no field could be counted" in told.stderr


@pytest.mark.parametrize("change", ["--force", "--verify", "--min-score=0.9", "--annotate", "--um-per-px=0.2"])
def test_what_asks_for_more_is_the_flows(change: str, words: list[str], flow_runs: list[Any]) -> None:
    run(words, change)
    assert len(flow_runs) == 1


def test_a_new_field_slide_or_model_is_the_flows(
    words: list[str], slides: Path, dark_folder: Path, flow_runs: list[Any]
) -> None:
    make_slide(UPath(slides / "s3"), 1)
    run(words)
    assert len(flow_runs) == 1
    for path in (slides / "s3").iterdir():
        path.rename(slides / "s2" / "f009.png")
    (slides / "s3").rmdir()
    run(words)
    assert len(flow_runs) == 2


def test_tables_that_cannot_be_read_are_the_flows(words: list[str], job: Job, flow_runs: list[Any]) -> None:
    (job.out / "cells" / "s2.parquet").write_bytes(b"PAR1")
    run(words)
    assert len(flow_runs) == 1


def test_drawings_that_are_there_are_enough_and_one_that_is_missing_is_the_flows(
    words: list[str], slides: Path, job: Job, flow_runs: list[Any]
) -> None:
    with ThreadPoolExecutor(1) as executor:
        for slide in discover(UPath(slides)):
            annotate_slide(job.out, slide, executor)
    run(words, "--annotate")
    assert flow_runs == []
    (job.out / "annotated" / "s1" / f"{arrow_text('f001')}.jpg").unlink()
    run(words, "--annotate")
    assert len(flow_runs) == 1


def test_an_out_with_another_writer_is_refused(words: list[str], job: Job, flow_runs: list[Any]) -> None:
    with holding(job.out, "night-7"):
        refused = run(words)
    assert (refused.exit_code, flow_runs) == (2, [])
    assert "run night-7 (process " in refused.stderr


def test_what_a_dead_run_left_is_swept(words: list[str], job: Job, flow_runs: list[Any]) -> None:
    (job.out / ".wbc" / "pixels" / "killed" / "s1.zarr").mkdir(parents=True)
    (job.out / "cells" / ".s1.parquet.0.tmp").write_text("half")
    assert run(words).exit_code == 3
    assert flow_runs == []
    assert not (job.out / ".wbc" / "pixels").exists()
    assert not (job.out / "cells" / ".s1.parquet.0.tmp").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--settings", "/no/such/cluster.toml"], "/no/such/cluster.toml"),
        (["--scheduler", "tcp://nowhere:1", "--workers", "2"], "has its workers"),
        (["--taxonomy", "nonesuch"], "nonesuch"),
        (["--detector", "/no/such/model"], "/no/such/model"),
    ],
)
def test_what_cannot_be_is_refused(more: list[str], reason: str, words: list[str], flow_runs: list[Any]) -> None:
    refused = run(words, *more)
    assert (refused.exit_code, flow_runs) == (2, [])
    assert reason in refused.stderr


def test_a_warning_is_told_once_whether_the_flow_runs_or_not(
    words: list[str], slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flow(asked: Any, *_: Any) -> CountReport:
        return CountReport((), remarks_on(survey(UPath(asked.slides)), UPath(asked.out)))

    monkeypatch.setattr(count_module, "_run_flow", flow)
    monkeypatch.setattr("flows.cluster.prepare", lambda *_: None)
    (slides / "s1" / "preview.webp").write_bytes(b"RIFF")
    for more in ([], ["--force"]):
        told = run(words, *more)
        assert len([line for line in told.stderr.splitlines() if line.startswith("warning: ")]) == 1, told.stderr
    assert logging.getLogger("wbc").propagate
