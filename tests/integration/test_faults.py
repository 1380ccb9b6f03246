"""Whatever goes wrong and whenever a run dies: the old count stands, and a rerun ends as if nothing had happened."""

import resource
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from jobs import make_job, only
from painted import make_slide
from upath import UPath

from benchmarks.counted import read_tables
from wbc.counting.slide import Job, count_ingested, count_slide, ingest_slide, is_counted
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.registry import ModelError
from wbc.storage.layout import Layout
from wbc.types import Slide


def contents(folder: UPath) -> dict[str, bytes]:
    root = Path(folder.path)
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def tables_of(out: UPath) -> dict[str, bytes]:
    return {name: content for name, content in contents(out).items() if name.endswith(".parquet")}


@pytest.fixture
def recount(painted_slide: UPath, out: UPath, threads: Executor) -> tuple[Slide, Job]:
    """A slide whose count stands, and one of whose fields has changed since."""
    count_slide(only(painted_slide), make_job(out), threads)
    make_slide(painted_slide, 1, cells=9)
    return only(painted_slide), make_job(out)


@pytest.fixture
def undisturbed(recount: tuple[Slide, Job], tmp_path: Path, threads: Executor) -> UPath:
    """The OUT of a run over that slide which nothing disturbed."""
    other = UPath(tmp_path / "undisturbed")
    shutil.copytree(recount[1].out.path, other.path)
    count_slide(recount[0], make_job(other), threads)
    return other


def assert_as_undisturbed(out: UPath, undisturbed: UPath) -> None:
    seen, expected = read_tables(out), read_tables(undisturbed)
    for kind, table in expected.items():
        pd.testing.assert_frame_equal(seen[kind], table)
    assert sorted(contents(out)) == sorted(contents(undisturbed))


# A full disk


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_a_disk_full_while_the_tables_are_written_costs_nothing_old(
    recount: tuple[Slide, Job], undisturbed: UPath, threads: Executor
) -> None:
    slide, job = recount
    before = tables_of(job.out)
    ingested = ingest_slide(slide, job, threads)
    with files_no_larger_than(3_000), pytest.raises(OSError, match=r"cannot be written: File too large.*parquet"):
        count_ingested(ingested, job, threads)
    assert tables_of(job.out) == before
    assert not [name for name in contents(job.out) if name.endswith(".tmp")]
    assert not is_counted(slide, job)
    count_ingested(ingested, job, threads)  # the stage alone, tried again
    assert_as_undisturbed(job.out, undisturbed)


def test_a_disk_full_while_the_pixels_are_written_costs_nothing_old(
    recount: tuple[Slide, Job], undisturbed: UPath, threads: Executor
) -> None:
    slide, job = recount
    before = tables_of(job.out)
    with files_no_larger_than(1_000), pytest.raises(OSError, match="File too large"):
        count_slide(slide, job, threads)
    assert tables_of(job.out) == before
    count_slide(slide, job, threads)
    assert_as_undisturbed(job.out, undisturbed)


def test_an_out_that_is_a_file_is_an_error_that_names_it(
    painted_slide: UPath, tmp_path: Path, threads: Executor
) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        count_slide(only(painted_slide), make_job(UPath(tmp_path / "taken")), threads)
    assert (tmp_path / "taken").read_text() == "mine"


# A run that dies


def test_leftovers_of_a_run_killed_after_its_commit_are_swept(
    painted_slide: UPath, out: UPath, threads: Executor
) -> None:
    slide, job = only(painted_slide), make_job(out)
    count_slide(slide, job, threads)
    clean = contents(out)
    ingest_slide(slide, make_job(out, force=True), threads)
    assert list(Path(out.path).rglob("*.zarr"))
    for name in ("cells/.s1.parquet.0123.tmp", "annotated/s1/.f000.png.jpg.89ab.tmp"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"half")
    Layout(out).sweep()
    assert is_counted(slide, job)
    assert contents(out) == clean
    assert not list(Path(out.path).rglob("*.zarr"))


# What may be tried again


def test_a_worker_that_fails_once_fails_the_slide_and_a_second_try_counts_it(
    recount: tuple[Slide, Job],
    undisturbed: UPath,
    threads: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slide, job = recount
    before = tables_of(job.out)

    def broken(*_: object) -> None:
        raise RuntimeError("the GPU fell off the bus")

    ingested = ingest_slide(slide, job, threads)
    monkeypatch.setattr("wbc.cells.detect.detect", broken)
    with pytest.raises(RuntimeError, match="fell off the bus"):
        count_ingested(ingested, job, threads)
    monkeypatch.undo()
    assert tables_of(job.out) == before
    count_ingested(ingested, job, threads)
    assert_as_undisturbed(job.out, undisturbed)


def test_a_model_that_changes_during_the_count_commits_nothing(
    painted_slide: UPath, out: UPath, tmp_path: Path, dark_card: ModelCard, threads: Executor
) -> None:
    class Weighted(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = torch.nn.Parameter(torch.tensor([value]))

    registry.save(tmp_path / "model", builders.build(dark_card), dark_card)
    job = make_job(out, detector=registry.resolve(str(tmp_path / "model"), "detector")[0])
    ingested = ingest_slide(only(painted_slide), job, threads)
    registry.save(tmp_path / "model", Weighted(1.0), dark_card)
    with pytest.raises(ModelError, match="differ between machines or changed meanwhile"):
        count_ingested(ingested, job, threads)
    assert tables_of(out) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(painted_slide: UPath, out: UPath, threads: Executor) -> None:
    with pytest.raises(ValueError, match="'cuda:1': no CUDA device here"):
        count_slide(only(painted_slide), make_job(out, device="cuda:1"), threads)
    assert tables_of(out) == {}
