"""The Dask cluster that counts: found or started, checked against this machine's code and models, closed again.

The only place that knows Dask.
"""

import atexit
import errno
import importlib
import logging
import os
import signal
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for_all
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4
from weakref import WeakSet

import wbc
from wbc.models.registry import ModelError, ModelRef, read_card
from wbc.revision import code_revision

if TYPE_CHECKING:
    from distributed import Client

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_RETRIES = 2
CONNECT_SECONDS = 30
CLOSE_SECONDS = 10
WORKER_BYTES = 2 << 30
MOST_READING_THREADS = 8
# A worker process that died is started again by its nanny, which takes a busy machine longer than the 15 s after which
# Dask would give the worker up for lost, and with the last one the run.
COMING_BACK = {"distributed.deploy.lost-worker-timeout": "1 hour"}
SEMAPHORES_LEFT = "ignore:resource_tracker:UserWarning"
# What stays so however often it is tried.
LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
}


class ClusterError(ValueError):
    """A cluster that cannot be used as it was asked for, with the reason."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster counts: one that runs (`scheduler`, its address), one to start (`cluster_class`), or this machine.

    `cluster_class` is an import path, called with `arguments`. `workers` is their number, or from `minimum` to
    `maximum` as the work needs. `wait_seconds` is how long the first worker may take, in a batch system's queue say.
    """

    scheduler: str | None = None
    cluster_class: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    workers: int | None = None
    minimum: int = 1
    maximum: int | None = None
    wait_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.scheduler is not None and (self.cluster_class or self.workers or self.maximum):
            raise ClusterError(f"the cluster at {self.scheduler} has its workers: name no class and no number of them")
        if self.arguments and self.cluster_class is None:
            raise ClusterError(f"arguments {sorted(self.arguments)} are for a class, and none is named")
        if self.workers is not None and (self.workers < 1 or self.maximum is not None):
            raise ClusterError(
                f"{self.workers} workers and a maximum of {self.maximum}: one positive number of the two"
            )
        if self.maximum is not None and (self.cluster_class is None or not 1 <= self.minimum <= self.maximum):
            raise ClusterError(f"from {self.minimum} to {self.maximum} workers: 1 or more, of a class that can adapt")

    def overridden(self, workers: int | None, scheduler: str | None) -> "ClusterSettings":
        """These settings with what was asked for on top: a scheduler's address stands instead of any other cluster."""
        if scheduler is not None:
            return ClusterSettings(scheduler=scheduler, workers=workers, wait_seconds=self.wait_seconds)
        return self if workers is None else replace(self, workers=workers, minimum=1, maximum=None)


def read_settings(path: str) -> ClusterSettings:
    """Settings from a TOML file with `ClusterSettings`' fields (`class` for `cluster_class`).

    Raises ClusterError naming the file and what is wrong in it, OSError where it cannot be read.
    """
    known = {"class" if f.name == "cluster_class" else f.name for f in fields(ClusterSettings)}
    try:
        values = tomllib.loads(Path(path).read_text())
        if unknown := sorted(set(values) - known):
            raise ClusterError(f"unknown settings {unknown}; there are {sorted(known)}")
        return ClusterSettings(**{"cluster_class" if k == "class" else k: v for k, v in values.items()})
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Cluster:
    """An open cluster: where fields are read, where models run (one call a GPU, where workers offer GPUs).

    `threads` is how many calls run at once; `device` what models are to run on there.
    """

    reading: Executor
    inference: Executor
    threads: int
    device: str


@contextmanager
def open_cluster(settings: ClusterSettings, device: str, models: Sequence[ModelRef]) -> Iterator[Cluster]:
    """The cluster of `settings` with a first worker up, whose code and `models` are found to be this machine's.

    However the block is left, calls under way are cancelled, and a cluster that was started here is closed; one that
    was found running is left as it was. Raises ClusterError.
    """
    from distributed import Client

    with _quiet(), _started(settings, device) as (where, device_there):
        # The default client is the one that code of others, in the same process, would pick up unasked.
        try:
            client: Client = Client(where, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise ClusterError(f"no Dask scheduler answers at {where} within {CONNECT_SECONDS} s: {error}") from error
        with client:
            _wait_for_worker(client, settings)
            _check_workers(client, models)
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
            resources = {"GPU": 1} if any(w["resources"].get("GPU") for w in workers) else {}
            threads = sum(w["nthreads"] for w in workers)
            threads = max(threads, (settings.maximum or 0) * threads // len(workers))
            with CheckedExecutor(client) as reading, CheckedExecutor(client, resources) as inference:
                yield Cluster(reading, inference, threads, device_there)


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's log without what is no news: that workers come is, at its default level, ten lines each."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _started(settings: ClusterSettings, device: str) -> Iterator[tuple[Any, str]]:
    """What a client connects to, and the device of models there."""
    import dask
    from distributed import LocalCluster

    if settings.scheduler is not None:
        yield settings.scheduler, device
        return
    # Calls to a cluster that has lost its last worker for good fail in the end, and are not waited for without one.
    with dask.config.set({"distributed.scheduler.no-workers-timeout": settings.wait_seconds}):
        if settings.cluster_class is None:
            cluster = _this_machine(settings.workers, gpus := visible_gpus(device))
            device = "cuda" if gpus else "cpu"
        else:
            cluster = _cluster_of_class(settings.cluster_class, settings.arguments)
        is_here = settings.cluster_class is None or isinstance(cluster, LocalCluster)
        with dask.config.set(COMING_BACK if is_here else {}), cluster:
            if settings.maximum is not None:
                cluster.adapt(minimum=settings.minimum, maximum=settings.maximum)
            elif settings.workers is not None and settings.cluster_class is not None:
                cluster.scale(settings.workers)
            yield cluster, device
            # On a busy machine workers are slow to leave and are killed then, which is as well.
            logging.getLogger("distributed").setLevel(logging.ERROR)


def _this_machine(workers: int | None, gpus: Sequence[str]) -> Any:
    """A cluster of worker processes here: one a GPU, else one a core, as memory allows."""
    from dask.system import CPU_COUNT
    from distributed import Scheduler, SpecCluster
    from distributed.deploy.spec import close_clusters
    from distributed.system import MEMORY_LIMIT

    n_workers = workers or len(gpus) or max(1, min(CPU_COUNT, MEMORY_LIMIT // WORKER_BYTES))
    cores = max(1, CPU_COUNT // n_workers)
    here = {"host": "127.0.0.1", "protocol": "tcp://", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    # A GPU's worker decodes fields on its cores while the GPU computes; a CPU's gives its cores to the model.
    threads, model_threads = (min(cores, MOST_READING_THREADS), 1) if gpus else (1, cores)
    options = here | {
        "nthreads": threads,
        "memory_limit": int(0.9 * MEMORY_LIMIT / n_workers),
        "silence_logs": logging.CRITICAL,  # a call's errors come back with it; the rest is told by the nanny, here
        "resources": {"GPU": 1} if gpus else None,
    }
    # Threads that spin while they wait for others take the cores from the other workers.
    env = {"OMP_NUM_THREADS": model_threads, "MKL_NUM_THREADS": model_threads, "OMP_WAIT_POLICY": "passive"}
    specs = {}
    for i in range(n_workers):
        visible = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)] if gpus else ""}
        specs[i] = {"cls": _nanny_of_deaf, "options": options | {"env": env | visible}}
    scheduler = {"cls": Scheduler, "options": here | {"port": 0}}
    try:
        return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=logging.WARNING)  # type: ignore[no-untyped-call]
    except KeyboardInterrupt:
        # One that is half started cannot be closed, which Dask would try at the end. Its workers end with this process.
        atexit.unregister(close_clusters)
        raise


def _nanny_of_deaf(*args: Any, **options: Any) -> Any:
    """A nanny whose worker process a terminal's Ctrl-C does not reach: it is ours to end, and would only complain."""
    from distributed import Nanny

    # This runs in the cluster's own thread, whose signal mask is inherited by the processes that it starts. Python
    # starts the resource tracker along with the first of them and lifts the mask then: so it must be up before. That
    # a worker which had to be killed has left semaphores, which the tracker removes, is nothing to warn of.
    sys.warnoptions.append(SEMAPHORES_LEFT)
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.remove(SEMAPHORES_LEFT)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    return Nanny(*args, **options)


def visible_gpus(device: str) -> list[str]:
    """The GPUs of this machine that `device` (auto, cpu, cuda, cuda:i) means, as CUDA_VISIBLE_DEVICES names them.

    Raises ClusterError where a GPU is asked for that is not there.
    """
    if device == "cpu":
        return []
    import torch

    n = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",")[:n] if named else [str(i) for i in range(n)]
    if device == "auto":
        return gpus
    index = device.partition(":")[2]
    if not device.startswith("cuda") or not (index or "0").isdigit():
        raise ClusterError(f"device {device!r} is not auto, cpu, cuda or cuda:NUMBER")
    if int(index or 0) >= n:
        raise ClusterError(f"device {device!r}: this machine has {n} CUDA devices")
    return [gpus[int(index)]] if index else gpus


def _cluster_of_class(path: str, arguments: Mapping[str, Any]) -> Any:
    cluster_class = _import_class(path)
    try:
        return cluster_class(**arguments)
    except Exception as error:  # every kind of cluster has its own
        raise ClusterError(f"{path} with {dict(arguments)} does not start: {error}") from error


def _import_class(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if not module:
        raise ClusterError(f"{path!r} is no import path of a class, as dask_jobqueue.SLURMCluster is")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        hint = f": pip install {package.replace('_', '-')}" if error.name == package else ""
        raise ClusterError(f"cluster class {path}: {error}{hint}") from error
    except AttributeError as error:
        raise ClusterError(f"cluster class {path}: {error}") from error
    return found


def _wait_for_worker(client: "Client", settings: ClusterSettings) -> None:
    try:
        client.wait_for_workers(1, timeout=settings.wait_seconds)
    except TimeoutError as error:
        where = settings.scheduler or settings.cluster_class or "this machine"
        raise ClusterError(f"the cluster of {where} has no worker after {settings.wait_seconds:g} s") from error


def _check_workers(client: "Client", models: Sequence[ModelRef]) -> None:
    expected = describe_here([])[:2]
    for worker, answer in client.run(describe_here, list(models), on_error="return").items():
        if isinstance(answer, Exception):
            raise ClusterError(f"worker {worker} cannot say which wbc it has: {type(answer).__name__}: {answer}")
        if answer[:2] != expected:
            theirs, ours = (f"{version} ({revision[:12]})" for version, revision in (answer[:2], expected))
            raise ClusterError(f"worker {worker} has wbc {theirs}, this machine {ours}: install the same on both")
        if answer[2]:
            raise ClusterError(f"worker {worker}: {answer[2]}")


def describe_here(models: Sequence[ModelRef]) -> tuple[str, str, str]:
    """On a worker: the version and code revision of its wbc, and what is wrong with its `models` ("" where nothing)."""
    wrong = []
    for model in models:
        try:
            found = read_card(model.reference).sha256
        except ModelError as error:
            wrong.append(str(error))
            continue
        if found != model.sha256:
            wrong.append(f"{model.reference!r} is {found[:12]}… there, {model.sha256[:12]}… on this machine")
    return wbc.__version__, code_revision(), "; ".join(wrong)


def run_checked(revision: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """On a worker: call `function`. Raises ClusterError where the worker's code is not that of `revision`."""
    if code_revision() != revision:
        from distributed import get_worker

        theirs = f"{wbc.__version__} ({code_revision()[:12]})"
        raise ClusterError(f"worker {get_worker().address} has wbc {theirs}, the count began with {revision[:12]}")
    return function(*args, **kwargs)


class CheckedExecutor(Executor):
    """Runs calls on the workers of a cluster that have this machine's code, those that join it later included.

    A call that raises, or whose worker dies, is tried again elsewhere. Leaving the block cancels what is not done.
    """

    def __init__(self, client: "Client", resources: Mapping[str, float] | None = None) -> None:
        options = {"resources": dict(resources)} if resources else {}
        self._dask: Any = client.get_executor(pure=False, retries=CHUNK_RETRIES, **options)  # type: ignore[no-untyped-call]
        self._revision = code_revision()
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._lock, self._closed = threading.Lock(), False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule a call. Raises RuntimeError once the cluster is closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the cluster is closed")
            key = f"{fn.__name__}-{uuid4().hex}"
            future: Future[T] = self._dask.submit(run_checked, self._revision, fn, *args, **kwargs | {"key": key})
            self._futures.add(future)
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what is not done, so that nobody waits for it any longer."""
        with self._lock:
            self._closed = True
            pending = [future for future in self._futures if not future.done()]
        for future in pending:
            future.cancel()
        if wait:
            wait_for_all(pending, timeout=CLOSE_SECONDS)


def worth_retrying(error: object) -> bool:
    """Whether a stage that ended in `error` may go well another time: a file system's or a network's bad moment.

    So may one whose worker died: it may have died of another slide's chunk.
    """
    from distributed import KilledWorker

    return isinstance(error, KilledWorker) or (isinstance(error, OSError) and error.errno not in LASTING)


def reason(error: BaseException) -> str:
    """Why a slide failed, one line for people."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        n = error.allowed_failures + 1
        return f"a worker died {n} times in a row while it worked on this slide (out of memory, or a library's fault)"
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(text.split())
