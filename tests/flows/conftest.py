"""A Prefect server of its own for the session, a Dask cluster of threads, and the flow with the detector of discs."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from counted import read_tables
from distributed import LocalCluster
from upath import UPath

from wbc.counting.slide import WorkSettings, count_slide
from wbc.storage.slides import discover

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Servers and workers are started by the dozen, and each would compile its libraries for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SERVER_SECONDS = 180
LEAVE_SECONDS = 30


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The address of a Prefect server with an empty database; flows of this process run against it."""
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=SERVER_SECONDS):
        yield str(get_current_settings().api.url)


@pytest.fixture(scope="session")
def dask_threads() -> Iterator[str]:
    """The address of a running Dask scheduler, whose two workers are threads of this process: no start to wait for."""
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def run_flow(prefect_server: str, dask_threads: str, dark_folder: Path) -> Callable[..., Any]:
    """`count_slides` with the detector of discs, on the cluster of threads unless told otherwise."""
    from flows.count_slides import count_slides

    def run(slides: UPath, out: UPath, **changes: Any) -> Any:
        options: dict[str, Any] = {"detector": str(dark_folder), "classifier": None, "scheduler": dask_threads}
        return count_slides(str(slides), str(out), **options | {"device": "cpu"} | changes)

    return run


@pytest.fixture
def counted_on_threads(make_job: Callable[..., Any]) -> Callable[[UPath, UPath], Any]:
    """The tables of slides counted by the library alone, without Prefect and Dask."""

    def counted(slides: UPath, out: UPath) -> dict[str, pd.DataFrame]:
        job = make_job(out, work=WorkSettings())
        with ThreadPoolExecutor(2) as executor:
            for slide in discover(slides):
                count_slide(slide, job, executor)
        return read_tables(out)

    return counted


@pytest.fixture
def temporaries() -> Callable[[UPath], list[str]]:
    """What a run has no business to leave in OUT: half-written files and pixels."""

    def found(out: UPath) -> list[str]:
        files = (p for p in out.rglob("*") if p.is_file())
        return sorted(str(p) for p in files if p.name.endswith(".tmp") or ".zarr/" in str(p) or "pixels/" in str(p))

    return found


@pytest.fixture(scope="session")
def survivors() -> Callable[[list[psutil.Process]], list[psutil.Process]]:
    """Those of some processes that are alive though they have had time to end."""

    def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
        def lives(process: psutil.Process) -> bool:
            try:
                return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
            except psutil.NoSuchProcess:
                return False

        deadline = time.monotonic() + LEAVE_SECONDS
        while any(map(lives, processes)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [process for process in processes if lives(process)]

    return alive
