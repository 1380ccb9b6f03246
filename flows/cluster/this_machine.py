"""Worker processes on this machine: how many, and what each gets of its cores, memory and GPUs."""

import atexit
import logging
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from flows.cluster.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Security

WORKER_BYTES = 2 << 30
MOST_READING_THREADS = 8
LOOPBACK = {"host": "127.0.0.1", "protocol": "tls://", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
SEMAPHORE_WARNING = "ignore:resource_tracker:UserWarning"


def cluster_here(workers: int | None, gpus: Sequence[str], security: "Security") -> Any:
    """A cluster of worker processes on this machine: one a GPU, else one a core, as memory allows."""
    from dask.system import CPU_COUNT
    from distributed import Scheduler, SpecCluster
    from distributed.deploy.spec import close_clusters
    from distributed.system import MEMORY_LIMIT

    n_workers = workers or len(gpus) or max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_BYTES))
    cores, memory = max(1, CPU_COUNT // n_workers), int(0.9 * MEMORY_LIMIT / n_workers)
    common = LOOPBACK | {"security": security}
    specs = {i: {"cls": _nanny, "options": common | _share(i, gpus, cores, memory)} for i in range(n_workers)}
    scheduler = {"cls": Scheduler, "options": common | {"port": 0}}
    try:
        return SpecCluster(specs, scheduler=scheduler, security=security, silence_logs=logging.WARNING)  # type: ignore[no-untyped-call]
    except KeyboardInterrupt:
        # Dask would close the cluster when Python exits, and cannot close one that is half started. Its workers end
        # with this process anyway.
        atexit.unregister(close_clusters)
        raise


def _share(i: int, gpus: Sequence[str], cores: int, memory_limit: int) -> dict[str, Any]:
    """What the i-th worker has of the machine, as options of Dask's worker."""
    # A GPU's worker decodes fields on its cores while the GPU computes; a CPU's gives its cores to the model.
    threads, model_threads = (min(cores, MOST_READING_THREADS), 1) if gpus else (1, cores)
    # Threads that spin while they wait for each other take the cores from the other workers.
    env = {"OMP_NUM_THREADS": model_threads, "MKL_NUM_THREADS": model_threads, "OMP_WAIT_POLICY": "passive"}
    return {
        "nthreads": threads,
        "memory_limit": memory_limit,
        "silence_logs": logging.CRITICAL,  # a call brings its errors back; the nanny tells the rest, here
        "resources": {"GPU": 1} if gpus else None,
        "env": env | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)] if gpus else ""},
    }


def _nanny(*args: Any, **options: Any) -> Any:
    """Dask's guardian of a worker process, which a terminal's Ctrl-C does not reach: the flow ends it in good order."""
    from distributed import Nanny

    # This runs in the cluster's own thread, and a process inherits the signal mask of the thread that starts it. Python
    # starts its resource tracker with the first process and lifts the mask then, so the tracker must run before. It
    # removes the semaphores of a worker that had to be killed, which is nothing to warn of.
    sys.warnoptions.append(SEMAPHORE_WARNING)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(SEMAPHORE_WARNING)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return Nanny(*args, **options)


def visible_gpus(device: str) -> list[str]:
    """The GPUs of this machine that `device` (auto, cpu, cuda, cuda:i) means, in the words of CUDA_VISIBLE_DEVICES.

    Raises ClusterError where a GPU is asked for that is not there.
    """
    if device == "cpu":
        return []
    import torch

    n = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = names.split(",")[:n] if names else [str(i) for i in range(n)]
    if device == "auto":
        return gpus
    index = device.partition(":")[2]
    if not device.startswith("cuda") or not (index or "0").isdigit():
        raise ClusterError(f"device {device!r} is not auto, cpu, cuda or cuda:NUMBER")
    if int(index or 0) >= n:
        raise ClusterError(f"device {device!r}: this machine has {n} CUDA devices")
    return [gpus[int(index)]] if index else gpus
