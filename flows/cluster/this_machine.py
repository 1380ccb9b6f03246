"""Worker processes on this machine: how many, and what each gets of its cores, memory and GPUs."""

import atexit
import logging
import os
import signal
from collections.abc import Sequence
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.cluster import fork_server
from flows.cluster.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Security

WORKER_BYTES = 2 << 30
# Most of the time a worker's GPU waits for its process: eight on sixteen cores did three times as much as one.
GPU_WORKER_CORES, GPU_WORKER_BYTES, BYTES_ON_GPU, MOST_ON_A_GPU = 2, 6 << 30, 3 << 30, 8
MOST_READING_THREADS = 8
# Calls of models in a GPU's worker at once: while one waits for the GPU, another reads fields and cuts out cells.
GPU_CALLS = 2
NEVER_SECONDS = 10**9
LOOPBACK = {"host": "127.0.0.1", "protocol": "tls://", "dashboard": False, "dashboard_address": "127.0.0.1:0"}


class Gpu(NamedTuple):
    """A GPU of this machine in the words of CUDA_VISIBLE_DEVICES, and its memory in bytes."""

    name: str
    memory: int


def cluster_here(workers: int | None, gpus: Sequence[Gpu], security: "Security") -> Any:
    """A cluster of worker processes on this machine: some a GPU, else one a core, as cores and memory allow."""
    import dask
    from dask.system import CPU_COUNT
    from distributed import Scheduler, SpecCluster
    from distributed.deploy.spec import close_clusters
    from distributed.system import MEMORY_LIMIT

    n_workers = workers or workers_for(gpus, CPU_COUNT, MEMORY_LIMIT)
    cores, memory = max(1, CPU_COUNT // n_workers), int(0.9 * MEMORY_LIMIT / n_workers)
    common = LOOPBACK | {"security": security}
    specs = {i: {"cls": _nanny, "options": common | _share(i, gpus, cores, memory)} for i in range(n_workers)}
    scheduler = {"cls": Scheduler, "options": common | {"port": 0}}
    # Dask gives a worker up for good that is not there some seconds after it died: its second death, or a busy machine
    # on which it takes long to start, would leave calls without a worker for ever. Nannies bring theirs back.
    dask.config.set({"distributed.deploy.lost-worker-timeout": f"{NEVER_SECONDS}s"})
    try:
        return SpecCluster(specs, scheduler=scheduler, security=security, silence_logs=logging.WARNING)  # type: ignore[no-untyped-call]
    except KeyboardInterrupt:
        # Dask would close the cluster when Python exits, and cannot close one that is half started. Its workers end
        # with this process anyway.
        atexit.unregister(close_clusters)
        raise


def workers_for(gpus: Sequence[Gpu], cores: int, memory: int) -> int:
    """How many workers suit a machine: one a core without GPUs, else one for two cores; one a GPU, however small."""
    if not gpus:
        return max(1, min(cores, memory // WORKER_BYTES))
    on_a_gpu = min(MOST_ON_A_GPU, min(gpu.memory for gpu in gpus) // BYTES_ON_GPU)
    return max(len(gpus), min(on_a_gpu * len(gpus), cores // GPU_WORKER_CORES, memory // GPU_WORKER_BYTES))


def _share(i: int, gpus: Sequence[Gpu], cores: int, memory_limit: int) -> dict[str, Any]:
    """What the i-th worker has of the machine, as options of Dask's worker."""
    # A GPU's worker decodes fields on its cores while the GPU computes, which a thread of the models' own waits for;
    # a CPU's gives its cores to the model.
    threads, model_threads = (min(cores, MOST_READING_THREADS) + 1, 1) if gpus else (1, cores)
    env = fork_server.ENVIRONMENT | {"OMP_NUM_THREADS": model_threads, "MKL_NUM_THREADS": model_threads}
    return {
        "nthreads": threads,
        "memory_limit": memory_limit,
        "preload": [fork_server.__name__],
        "silence_logs": logging.CRITICAL,  # a call brings its errors back; the nanny tells the rest, here
        "resources": {"GPU": GPU_CALLS} if gpus else None,
        "env": env | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)].name if gpus else ""},
    }


def _nanny(*args: Any, **options: Any) -> Any:
    """Dask's guardian of a worker process, which a terminal's Ctrl-C does not reach: the flow ends it in good order."""
    from distributed import Nanny

    # This runs in the cluster's own thread, and a process inherits the signal mask of the thread that starts it; where
    # it is forked, of the one that started its fork server.
    fork_server.start_resource_tracker()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return Nanny(*args, **options)


def visible_gpus(device: str) -> list[Gpu]:
    """The GPUs of this machine that `device` (auto, cpu, cuda, cuda:i) means.

    Raises ClusterError where a GPU is asked for that is not there.
    """
    if device == "cpu":
        return []
    memory = gpu_memory()
    n = len(memory)
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = list(map(Gpu, names.split(",") if names else map(str, range(n)), memory))
    if device == "auto":
        return gpus
    index = device.partition(":")[2]
    if not device.startswith("cuda") or not (index or "0").isdigit():
        raise ClusterError(f"device {device!r} is not auto, cpu, cuda or cuda:NUMBER")
    if int(index or 0) >= n:
        raise ClusterError(f"device {device!r}: this machine has {n} CUDA devices")
    return [gpus[int(index)]] if index else gpus


def gpu_memory() -> list[int]:
    """The bytes of each GPU that torch finds: a process that has torch, where there is one, is asked."""
    if fork_server.METHOD != "forkserver":
        return _gpu_memory()
    with get_context(fork_server.METHOD).Pool(1) as pool:
        return pool.apply(_gpu_memory)


def _gpu_memory() -> list[int]:
    import torch

    return [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
