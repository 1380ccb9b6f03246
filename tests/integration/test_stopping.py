"""A `wbc count` that is told to stop, in a process of its own: it ends soon, alone, and the next one goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from painted import make_slide
from upath import UPath

pytestmark = [pytest.mark.dask, pytest.mark.timeout(900)]

N_SLIDES = 32


@pytest.fixture
def command(tmp_path: Path, dark_folder: Path) -> list[str]:
    """Counts many slides of three fields with 18 cells, into `out` beside them."""
    for i in range(N_SLIDES):
        make_slide(UPath(tmp_path / "slides" / f"s{i:02d}"), 3)
    wbc = shutil.which("wbc", path=str(Path(sys.executable).parent))
    assert wbc
    places = [str(tmp_path / "slides"), "--out", str(tmp_path / "out")]
    models_used = ["--detector", str(dark_folder), "--classifier", "none"]
    return [wbc, "count", *places, "--workers", "1", "--device", "cpu", *models_used]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return os.environ | {"PREFECT_HOME": str(tmp_path / "prefect")}


@pytest.fixture
def counting(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """The command in a session of its own, its first slides counted."""
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        assert process.stderr is not None
        told = [process.stderr.readline() for _ in range(3)]
        assert ": counted: " in told[2], "".join(told)
        yield process


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_ends_soon_and_the_next_run_goes_on(
    counting: "subprocess.Popen[str]", command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """As a shell does it: the interrupt reaches the command, its Dask workers and Prefect's server alike."""
    assert counting.stderr is not None
    os.killpg(counting.pid, signal.SIGINT)
    began = time.monotonic()
    rest = counting.stderr.read()
    assert counting.wait() == 130
    assert time.monotonic() - began < 60
    assert "run the same command again" in rest

    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, env=environment)
    assert again.returncode == 0, again.stderr
    # All slides show the same pictures, which is told.
    meant = r"\d\d:\d\d:\d\d \S+|warning: .*(and again in|more pairs of slides)"
    assert not [line for line in again.stderr.splitlines() if not re.match(meant, line)]
    slides = json.loads(again.stdout)["slides"]
    assert [(s["slide_id"], s["n_cells"]) for s in slides] == [(f"s{i:02d}", 18) for i in range(N_SLIDES)]
    assert {s["status"] for s in slides} == {"counted", "unchanged"}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".tmp")]


def test_sigterm_leaves_no_process_behind(counting: "subprocess.Popen[str]") -> None:
    """As a service manager stops a run: the command alone is told, and takes its workers and servers with it."""
    assert counting.stderr is not None
    children = psutil.Process(counting.pid).children(recursive=True)
    assert any("uvicorn" in " ".join(child.cmdline()) for child in children)
    counting.terminate()
    assert "run the same command again" in counting.stderr.read()
    assert counting.wait(60) == 130
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
