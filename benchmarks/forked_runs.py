"""A process that runs counts in forks of itself, to be killed: what takes long to import is there.

`python -m benchmarks.forked_runs` reads one JSON object a line: the `parameters` of a count; `act`, what is done with
them (`flow`, unless it says otherwise, or one of ACTS); and, to be killed, `kill_after` seconds from the moment that
the flow has found its slides, or that another act begins, or that so many are counted as `slides_done` says; and the
`victim`'s process id where it is not the fork. It answers each with one line: `killed`, `done` or `failed`, and the
seconds since that moment.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from upath import UPath

from benchmarks.count_run import run_count
from wbc.counting.handover import SlideOutcome
from wbc.counting.job import new_run_id
from wbc.counting.parameters import CountParameters
from wbc.counting.recount import Change, recount_slides
from wbc.storage.counts import retire
from wbc.storage.gone import slides_to_prune
from wbc.storage.layout import Layout
from wbc.storage.lock import holding
from wbc.taxonomy import load_taxonomy

ROOT = Path(__file__).parents[1]
Order = Callable[..., tuple[str, float]]


class Begun:
    """Writes a byte to a pipe when the work begins, a flow's when its slides are found, and when a slide is done."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        """The work begins."""
        os.write(self.pipe, b"!")

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        """As it goes on."""

    def slide_done(self, outcome: SlideOutcome) -> None:
        """It has its row."""
        os.write(self.pipe, b"!")


def run_flow(parameters: dict[str, Any], begun: Begun) -> None:
    """The flow; every slide must be counted."""
    from flows.count_slides import count_slides, listening

    with listening(begun):
        report = count_slides(**parameters)
    assert not report.failed, report.failed


def count_here(parameters: dict[str, Any]) -> None:
    """The same count by the library alone."""
    report = run_count(CountParameters(**parameters))
    assert not report.failed, report.failed


def recount_here(parameters: dict[str, Any]) -> None:
    """All slides of OUT by another taxonomy, from their detections."""
    out = UPath(parameters["out"])
    outcomes = recount_slides(out, Layout(out).slide_ids(), Change(load_taxonomy(parameters["taxonomy"])))
    assert not any(outcome.reason for outcome in outcomes), outcomes


def prune_here(parameters: dict[str, Any]) -> None:
    """The counts of slides that are not there any more go to the history."""
    out = UPath(parameters["out"])
    with holding(out, new_run_id()) as hold:
        for gone in slides_to_prune(out):
            hold.check()
            retire(out, gone.slide_id)


ACTS: Mapping[str, Callable[[dict[str, Any]], None]] = {
    "count": count_here,
    "recount": recount_here,
    "prune": prune_here,
}


def fork(order: dict[str, Any]) -> tuple[int, int]:
    """The process id of a fork that does what is ordered, and the pipe on which it tells that the work begins."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            begun, act = Begun(writing), order.get("act", "flow")
            if act == "flow":
                run_flow(order["parameters"], begun)
            else:
                begun.slides_found(0, 0)
                ACTS[act](order["parameters"])
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(writing)
    return child, reading


@contextmanager
def ordered_runs(environment: Mapping[str, str]) -> Iterator[Order]:
    """Within, a function that orders a run and gives back what became of it, and its seconds."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "benchmarks.forked_runs"]
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment, start_new_session=True
    ) as process:
        assert process.stdin
        assert process.stdout
        to, back = process.stdin, process.stdout

        def run(**values: Any) -> tuple[str, float]:
            to.write(json.dumps(values) + "\n")
            to.flush()
            word, seconds = back.readline().split()
            return word, float(seconds)

        yield run
        os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """Do what is ordered, one run after the other."""
    # Imported when a flow runs; here, each fork would do it anew.
    import distributed  # noqa: F401
    import prefect.flow_engine
    import prefect.task_engine  # noqa: F401

    import flows.count_slides  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        child, pipe = fork(order)
        for _ in range(1 + order.get("slides_done", 0)):
            os.read(pipe, 1)
        begun = time.monotonic()
        if "kill_after" in order:
            time.sleep(order["kill_after"])
            os.kill(order.get("victim", child), signal.SIGKILL)
        _, ended = os.waitpid(child, 0)
        os.close(pipe)
        word = "killed" if os.WIFSIGNALED(ended) else "done" if ended == 0 else "failed"
        print(word, time.monotonic() - begun, flush=True)


if __name__ == "__main__":
    main()
