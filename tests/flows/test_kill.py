"""A flow process that is killed, at any moment: run again, it leaves the tables of a run that never was."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from counted_runs import assert_equal
from fixture_types import RunFlow
from jobs import temporaries
from painted import make_slide
from processes import survivors
from upath import UPath

from benchmarks.counted import read_tables
from benchmarks.forked_runs import Order, ordered_runs

pytestmark = [pytest.mark.dask, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
ROUNDS, KILLS_A_ROUND = 10, 2


@pytest.fixture(scope="module")
def environment(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    quiet = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_API_URL": prefect_server, "PREFECT_HOME": home}
    return os.environ | quiet | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def order(environment: dict[str, str]) -> Iterator[Order]:
    """Runs the flow in a process of its own, to its end or to its violent death; what became of it, and its seconds."""
    with ordered_runs(environment) as run:
        yield run


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> UPath:
    root = UPath(tmp_path_factory.mktemp("killed") / "slides")
    for i, n_fields in enumerate((1, 9)):
        make_slide(root / f"slide-{i}", n_fields)
    return root


@pytest.fixture(scope="module")
def parameters(slides: UPath, dark_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The flow on workers that are threads of its process: no start of processes to wait for."""
    site = tmp_path_factory.mktemp("site") / "threads.toml"
    site.write_text(
        'class = "distributed.LocalCluster"\n[arguments]\nprocesses = false\nn_workers = 2\n'
        'threads_per_worker = 1\ndashboard_address = "127.0.0.1:0"\n'
    )
    common = {"slides": str(slides), "detector": str(dark_folder), "classifier": None, "device": "cpu"}
    return common | {"settings": str(site)}


@pytest.fixture(scope="module")
def undisturbed(
    order: Order, parameters: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[UPath, float]:
    """OUT of a run that nobody disturbs, and the seconds from the moment that it found its slides.

    The shorter of two runs: kills are to fall into the work of runs that have less to wait for.
    """
    outs = [tmp_path_factory.mktemp("undisturbed") / "out" for _ in range(2)]
    runs = [order(parameters=parameters | {"out": str(out)}) for out in outs]
    assert [word for word, _ in runs] == ["done", "done"]
    return UPath(outs[0]), min(seconds for _, seconds in runs)


def assert_whole(out: UPath) -> int:
    """Whatever has a row in `slides` has the cells and the differential of the same count; how many have one."""
    rows = [path for path in (out / "slides").glob("*.parquet") if not path.name.startswith(".")]
    for path in rows:
        (n_cells,) = pd.read_parquet(path.path)["n_cells"]
        assert len(pd.read_parquet((out / "cells" / path.name).path)) == n_cells
        counts = pd.read_parquet((out / "differentials" / path.name).path)
        assert counts.set_index("cell_type")["count"]["rbc"] == n_cells
    return len(rows)


def test_killed_at_any_moment_and_run_again_the_tables_are_the_same(
    order: Order,
    parameters: dict[str, Any],
    undisturbed: tuple[UPath, float],
    tmp_path: Path,
    slides: UPath,
    run_flow: RunFlow,
) -> None:
    expected, seconds = read_tables(undisturbed[0]), undisturbed[1]
    moments = random.Random(20)
    rows, n_half_done = [], 0
    for i in range(ROUNDS):
        out = UPath(tmp_path / f"out-{i}")
        kills: list[dict[str, float]] = [{"part": moments.random()} for _ in range(KILLS_A_ROUND)]
        if i % 4 == 0:  # the end of a run is short, and is not left to chance
            kills.insert(0, {"part": 0, "slides_done": 1})
        for kill in kills:
            moment, is_new = {"kill_after": kill.pop("part") * seconds}, not out.exists()
            became, spent = order(parameters=parameters | {"out": str(out)}, **moment, **kill)
            if became == "killed":
                rows.append(assert_whole(out))
                n_half_done += bool(temporaries(out))
            elif is_new:  # the machine has less else to do than when nobody disturbed
                seconds = min(seconds, spent)
        run_flow(slides, out)
        assert_equal(read_tables(out), expected)
        assert temporaries(out) == []
    # Else the kills came all before or after the work, and the above says nothing.
    assert len(rows) > ROUNDS
    assert len(set(rows)) > 1
    assert n_half_done > 2


SCRIPT = """
import json, sys
from flows.count_slides import count_slides, listening

class Told:
    def slides_found(self, n_slides, n_fields): pass
    def fields_done(self, n_fields, n_cells): print("counting", flush=True)
    def slide_done(self, outcome): pass

with listening(Told()):
    count_slides(**json.loads(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_flow_that_is_stopped_takes_its_cluster_with_it(
    number: signal.Signals,
    environment: dict[str, str],
    parameters: dict[str, Any],
    tmp_path: Path,
) -> None:
    values = parameters | {"out": str(tmp_path / "out"), "settings": None, "workers": 1}
    command = [sys.executable, "-c", SCRIPT, json.dumps(values)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout
        assert process.stdout.readline() == "counting\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("multiprocessing" in word for worker in started for word in worker.cmdline())
        process.send_signal(number)
        process.wait(60)
    assert survivors(started) == []
