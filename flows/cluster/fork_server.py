"""Worker processes of this machine fork from one that has imported what they need, which takes longer than all else."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, resource_tracker

from flows.signals import out_of_reach
from wbc.models.registry import ModelRef, read_card

# What can be forked from on macOS has no frameworks loaded, and torch loads some.
METHOD = "forkserver" if sys.platform == "linux" else "spawn"
LIBRARIES = ("distributed.nanny", "wbc.counting.worker", "wbc.cells.scale", "wbc.cells.classify", "wbc.models.builders")
# Read once, when torch is imported; how many threads a worker's models have it sets itself, in `dask_setup`.
# Threads that spin while they wait for each other take the cores from the other workers.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
SEMAPHORE_WARNING = "ignore:resource_tracker:UserWarning"


def start_fork_server(models: Sequence[ModelRef]) -> None:
    """Start the process that workers fork from, unless it runs; it goes on importing, and ends with this process.

    Raises ModelError where a model is not there.
    """
    start_resource_tracker()
    if METHOD == "forkserver":
        builders = (f"wbc.models.{read_card(model.reference).builder}" for model in models)
        get_context(METHOD).set_forkserver_preload([*LIBRARIES, *builders])
        with out_of_reach(), _environment():
            forkserver.ensure_running()


def start_resource_tracker() -> None:
    """Start Python's resource tracker, which comes with the first process otherwise.

    It lifts the signal mask of the thread that starts it, so it must run before one is set. It removes the semaphores
    of a worker that had to be killed, which is nothing to warn of.
    """
    sys.warnoptions.append(SEMAPHORE_WARNING)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(SEMAPHORE_WARNING)


def dask_setup(_worker: object) -> None:
    """On a worker that starts: the threads of its models, as its environment has them."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@contextmanager
def _environment() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
