"""A Prefect server of its own for the session, a Dask cluster of threads, and the flow with the detector of discs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from fixture_types import RunFlow
from painted import make_slide
from upath import UPath

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# Servers and workers are started by the dozen, and each would compile its libraries for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

SERVER_SECONDS = 180


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
def run_flow(prefect_server: str, dask_threads: str, dark_folder: Path) -> RunFlow:
    """`count_slides` with the detector of discs, on the cluster of threads unless told otherwise."""
    from flows.count_slides import count_slides

    def run(slides: UPath, out: UPath, **changes: Any) -> Any:
        options: dict[str, Any] = {"detector": str(dark_folder), "classifier": None, "scheduler": dask_threads}
        return count_slides(str(slides), str(out), **options | {"device": "cpu"} | changes)

    return run


@pytest.fixture
def slides(tmp_path: Path) -> UPath:
    """A slide of nine fields (two chunks), one of two of which one is a text, and a folder without images."""
    root = UPath(tmp_path / "slides")
    make_slide(root / "long", 9)
    make_slide(root / "mixed", 2)
    (root / "mixed" / "notes [1].jpg").write_text("no picture")
    (root / "empty").mkdir()
    return root
