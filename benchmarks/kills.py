"""SIGKILL at random moments, of a flow, of a worker, of a recount, of a rename, of a prune: run again, OUT is as it
would be had nobody been killed.

A trial kills one process, at a moment between the beginning of its work and the time that it needs undisturbed. Where
the run did not end by itself it is run again. Then every table in OUT, and every one in its history, must be as after
an undisturbed run, nothing half-written may be left, and OUT must be free for the next. Flows run against a Prefect
server, on a cluster of threads of their own or on one of worker processes; the rest is the library's.
"""

import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from benchmarks.common import Claim, Report, Row, parser, show, stub_detector
from benchmarks.counted import Tables, read_tables
from benchmarks.forked_runs import Order, ordered_runs
from benchmarks.small_slides import UM_PER_PX, base_fields, write_slide
from wbc.storage.layout import Layout
from wbc.storage.lock import check_free

FIELDS_OF_SLIDES, DARK_LEVEL = (2, 4, 8), 0.65
THREADS = """class = "distributed.LocalCluster"
[arguments]
processes = false
n_workers = 2
threads_per_worker = 1
dashboard_address = "127.0.0.1:0"
"""


@dataclass(frozen=True, slots=True)
class Act:
    """Something to be killed: what `forked_runs` is ordered to do, beginning from an empty OUT or from a counted one.

    `victim` finds the process to be killed where it is not the run itself; `weight` is the act's share of the trials.
    """

    name: str
    order: Mapping[str, Any]
    weight: int
    counted_before: bool = False
    victim: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """What an act leaves undisturbed, in OUT and in its history, and the seconds that it needs."""

    tables: Mapping[str, Tables]
    seconds: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill: of what, after how many seconds, whether something was left half-done, and what is wrong now."""

    act: str
    after_s: float
    was_half_done: bool
    wrong: str


def all_tables(out: Path) -> dict[str, Tables]:
    """The tables in OUT, and those of each count in its history."""
    history = sorted((out / "history").iterdir()) if (out / "history").exists() else []
    return {folder.name: read_tables(UPath(folder)) for folder in [out, *history]}


def differences(found: Mapping[str, Tables], expected: Mapping[str, Tables], out: Path) -> str:
    """Where two OUTs differ; "" where they do not. `out` is the name that the OUT itself has in the first."""
    if {*found} - {out.name} != {*expected} - {"out"}:
        return f"history holds {sorted(found)}, undisturbed {sorted(expected)}"
    pairs = [(own, tables, found[out.name if own == "out" else own]) for own, tables in expected.items()]
    wrong = [f"{own}/{name}" for own, tables, now in pairs for name in tables if not tables[name].equals(now[name])]
    return ", ".join(wrong)


def leftovers(out: Path) -> list[str]:
    """What killed runs left in OUT, and the holder that it has, if it has one."""
    left = [str(path) for path in Layout(UPath(out)).leftovers()]
    try:
        check_free(UPath(out))
    except ValueError as error:
        left.append(str(error))
    return left


class Course:
    """Slides, a counted OUT, and the acts that are killed, each with what it leaves undisturbed."""

    def __init__(
        self, folder: Path, data: Path | None, order: Order, scheduler: str, worker: Callable[[], int]
    ) -> None:
        self.folder, self.order = folder, order
        fields, rng = base_fields(data, max(FIELDS_OF_SLIDES), 1), np.random.default_rng(1)
        for i, n in enumerate(FIELDS_OF_SLIDES):
            write_slide(folder / "slides" / f"s{i}", fields, rng, n)
        (folder / "threads.toml").write_text(THREADS)
        self.acts = self._acts(scheduler, worker)
        self.counted = folder / "counted" / "out"
        assert self.order(**self._ordered(self.acts[0], self.counted))[0] == "done"
        self._move_slides()
        self.goals = {act.name: self._goal(act) for act in self.acts}

    def _acts(self, scheduler: str, worker: Callable[[], int]) -> list[Act]:
        detector = stub_detector(self.folder / "detector", DARK_LEVEL).reference
        common = {"detector": detector, "classifier": None, "device": "cpu", "um_per_px": UM_PER_PX}
        slides, moved = str(self.folder / "slides"), str(self.folder / "moved")
        flow, here = common | {"slides": slides}, common | {"slides": moved, "rename": True}
        on_threads = {"parameters": flow | {"settings": str(self.folder / "threads.toml")}}
        on_workers = {"parameters": flow | {"scheduler": scheduler}}
        by_marrow = {"act": "recount", "parameters": {"taxonomy": "marrow_icsh"}}
        return [
            Act("flow, on threads", on_threads, 8),
            Act("flow, on workers", on_workers, 4),
            Act("worker", on_workers, 4, victim=worker),
            Act("count --rename", {"act": "count", "parameters": here}, 5, counted_before=True),
            Act("recount", by_marrow, 5, counted_before=True),
            Act("prune", {"act": "prune", "parameters": {}}, 4, counted_before=True),
        ]

    def _move_slides(self) -> None:
        """Copies of all slides in another folder, where s1 has another name."""
        moved = self.folder / "moved"
        shutil.copytree(self.folder / "slides", moved)
        (moved / "s1").rename(moved / "t1")

    def _ordered(self, act: Act, out: Path) -> dict[str, Any]:
        return {**act.order, "parameters": {**act.order["parameters"], "out": str(out)}}

    def prepared(self, act: Act, out: Path) -> None:
        """OUT as it is before the act."""
        out.parent.mkdir(parents=True)
        if act.counted_before:
            shutil.copytree(self.counted, out)
        if act.name == "prune":
            shutil.move(self.folder / "slides" / "s0", self.folder / "s0-elsewhere")

    def cleared(self, act: Act) -> None:
        """The slides as they were before the act."""
        if act.name == "prune":
            shutil.move(self.folder / "s0-elsewhere", self.folder / "slides" / "s0")

    def _goal(self, act: Act) -> Goal:
        out = self.folder / act.name.replace(" ", "-") / "out"
        self.prepared(act, out)
        word, seconds = self.order(**self._ordered(act, out))
        self.cleared(act)
        assert word == "done", act.name
        return Goal(all_tables(out), seconds)

    def kill(self, act: Act, after_s: float, out: Path) -> Trial:
        """Kill the act's process, run it again unless it is done, and look at what is there."""
        self.prepared(act, out)
        ordered, goal = self._ordered(act, out), self.goals[act.name]
        victim = {} if act.victim is None else {"victim": act.victim()}
        word = self.order(**ordered, kill_after=after_s, **victim)[0]
        was_half_done = bool(leftovers(out)) if word == "killed" else word == "done" and bool(victim)
        if word != "done":
            word = self.order(**ordered)[0]
        self.cleared(act)
        wrong = word if word != "done" else differences(all_tables(out), goal.tables, out)
        return Trial(act.name, after_s, was_half_done, wrong or "; ".join(leftovers(out)))


@contextmanager
def worker_processes() -> Iterator[tuple[str, Callable[[], int]]]:
    """Within, a cluster of two worker processes: its address, and a function that names one of them at random."""
    import dask
    from distributed import LocalCluster

    from flows.cluster.fork_server import METHOD, start_fork_server
    from flows.cluster.this_machine import NEVER_SECONDS

    rng = np.random.default_rng(2)
    start_fork_server([])
    how: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    set_up = {
        "distributed.worker.multiprocessing-method": METHOD,
        "distributed.deploy.lost-worker-timeout": f"{NEVER_SECONDS}s",  # as in the clusters that a count starts
    }
    with dask.config.set(set_up), LocalCluster(**how) as cluster:

        def victim() -> int:
            pids: list[int] = []
            while not pids:  # a worker that was killed is on its way back
                pids = [nanny.process.pid for nanny in cluster.workers.values() if nanny.process and nanny.process.pid]
                time.sleep(0.05)
            return int(rng.choice(pids))

        yield cluster.scheduler_address, victim


@contextmanager
def setting(folder: Path, data: Path | None) -> Iterator[Course]:
    """Within, a server, a cluster of worker processes, and a process that forks what is to be killed."""
    # A busy machine takes minutes to start a server with an empty database.
    os.environ |= {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    os.environ |= {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "900", "PREFECT_SERVER_ANALYTICS_ENABLED": "0"}
    from prefect.settings import PREFECT_API_URL

    from flows.private_server import private_server

    with ExitStack() as stack:
        scheduler, victim = stack.enter_context(worker_processes())
        stack.enter_context(private_server(lambda: None))
        quiet = {"PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_LOGGING_TO_API_ENABLED": "false"}
        order = stack.enter_context(ordered_runs(os.environ | quiet))
        yield Course(folder, data, order, scheduler, victim)


def trials(options: Namespace) -> Iterator[Trial]:
    """The trials, one after the other."""
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder, setting(Path(folder), options.data) as course:
        weights = np.array([act.weight for act in course.acts]) / sum(act.weight for act in course.acts)
        for number in range(options.trials):
            act = course.acts[int(rng.choice(len(course.acts), p=weights))]
            out = Path(folder) / f"trial-{number}" / "out"
            yield course.kill(act, float(rng.uniform(0, course.goals[act.name].seconds)), out)
            shutil.rmtree(out.parent)


def measure(options: Namespace) -> Report:
    """How many of each act were killed, in how many something was half-done, and where OUT is not as it should be."""
    done = list(trials(options))
    n, half_done = Counter(t.act for t in done), Counter(t.act for t in done if t.was_half_done)
    wrong = Counter(t.act for t in done if t.wrong)
    rows: list[Row] = [
        {"act": act, "kills": n[act], "left something half-done": half_done[act], "differ when run again": wrong[act]}
        for act in sorted(n)
    ]
    bad: list[Row] = [
        {"trial": i, "act": t.act, "after": t.after_s, "wrong": t.wrong[:200]} for i, t in enumerate(done) if t.wrong
    ]
    claims = [
        Claim("kills", len(done)),
        Claim("that left something half-done", half_done.total()),
        Claim("OUTs that differ from an undisturbed one", wrong.total(), at_most=0),
    ]
    return Report("Kills", claims, {"Acts": rows, "Different": bad})


def main() -> None:
    """Kill as the command line says, and print how it ended."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--trials", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--data", type=Path, help="a folder of real slides; rendered fields without one")
    options = arguments.parse_args()
    show(measure(options), as_json=options.json)


if __name__ == "__main__":
    main()
