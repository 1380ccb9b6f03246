"""A process that runs the count-slides flow in forks of itself, to be killed: what takes long to import is there.

Reads one JSON object a line: the flow's `parameters`, and, to be killed, `kill_after` seconds from the moment that the
slides are found. Answers each with one line: `killed`, `done` or `failed`, and the seconds since the slides were found.
"""

import json
import os
import signal
import sys
import time
from typing import Any

# Imported when a flow runs; here, each fork would do it anew.
import distributed  # noqa: F401
import prefect.flow_engine
import prefect.task_engine  # noqa: F401

from flows.count_slides import count_slides, listening


class Found:
    """A listener that writes a byte to a pipe when the slides are found."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        os.write(self.pipe, b"!")

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        pass

    def slide_done(self, outcome: object) -> None:
        pass


def run(parameters: dict[str, Any], pipe: int) -> None:
    with listening(Found(pipe)):
        report = count_slides(**parameters)
    assert not report.failed, report.failed


def fork(parameters: dict[str, Any]) -> tuple[int, int]:
    """The process id of a fork that runs the flow, and the pipe on which it tells that the slides are found."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            run(parameters, writing)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(writing)
    return child, reading


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child, pipe = fork(order["parameters"])
        os.read(pipe, 1)
        found = time.monotonic()
        if "kill_after" in order:
            time.sleep(order["kill_after"])
            os.kill(child, signal.SIGKILL)
        _, ended = os.waitpid(child, 0)
        os.close(pipe)
        word = "killed" if os.WIFSIGNALED(ended) else "done" if ended == 0 else "failed"
        print(word, time.monotonic() - found, flush=True)


if __name__ == "__main__":
    main()
