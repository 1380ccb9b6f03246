"""The `wbc` command, run in the tests' process on a small Dask cluster, and slides for it to count."""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
from fixture_types import Wbc
from painted import make_slide
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.testing.utilities import prefect_test_harness
from typer.testing import CliRunner, Result
from upath import UPath

from wbc.cli.main import app


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    """Two threads in the place of a cluster."""
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def out(tmp_path: Path) -> UPath:
    """Where a count writes."""
    return UPath(tmp_path / "out")


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a running Dask cluster of one worker."""
    from distributed import LocalCluster

    with (
        pytest.MonkeyPatch.context() as patch,
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            protocol="tcp://",
            dashboard_address=":0",
        ) as cluster,
    ):
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        with prefect_test_harness(server_startup_timeout=180):
            yield cluster.scheduler_address


@pytest.fixture
def wbc(monkeypatch: pytest.MonkeyPatch) -> Wbc:
    """Runs the command in this process, whose Prefect is configured already: silenced here as the command does."""
    setup_logging()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler):
            monkeypatch.setattr(handler, "level", logging.CRITICAL)
    for name in ("PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


@pytest.fixture
def count(wbc: Wbc, scheduler: str, dark_folder: Path) -> Wbc:
    """`wbc count` on that cluster with a detector that finds painted discs."""

    def run(slides: object, out: object, *more: object) -> Result:
        models_used = ("--detector", dark_folder, "--classifier", "none", "--device", "cpu")
        return wbc("count", slides, "--out", out, "--scheduler", scheduler, *models_used, *more)

    return run


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """Two slides: s1 of fields with 5 and 6 cells, s2 of one with 5."""
    make_slide(UPath(tmp_path / "slides" / "s1"), 2)
    make_slide(UPath(tmp_path / "slides" / "s2"), 1)
    return tmp_path / "slides"
