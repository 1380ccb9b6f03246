"""From settings to something that a Dask client can connect to: an address, or a cluster that starts and ends here."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flows.cluster.errors import ClusterError
from flows.cluster.fork_server import METHOD, start_fork_server
from flows.cluster.security import certificate_in, own_certificate
from flows.cluster.settings import ClusterSettings
from flows.cluster.this_machine import cluster_here, visible_gpus
from wbc.models.registry import ModelRef

if TYPE_CHECKING:
    from distributed import Security

# A worker process that died is started again by its nanny. On a busy machine that takes longer than the 15 s after
# which Dask would give the worker up for lost, and with the last one the run.
PATIENCE_WITH_LOST_WORKERS = {"distributed.deploy.lost-worker-timeout": "1 hour"}
# Dask keeps its last thousand steps, and of each connection the last thousand messages, for those who look for faults
# in Dask: calls with all their arguments, long after they are done. And the loop of each scheduler, nanny and worker
# looks fifty times a second whether it is late, to tell of delays from 3 s on: a fiftieth of a core for each process.
LIGHT = {"distributed.admin.low-level-log-length": 50, "distributed.admin.tick.interval": "500 ms"}


def prepare(settings: ClusterSettings, models: Sequence[ModelRef]) -> None:
    """Begin what takes long on the way to this machine's workers, and wait for nothing."""
    if settings.scheduler is None and settings.cluster_class is None:
        start_fork_server(models)


@contextmanager
def start(
    settings: ClusterSettings, device: str, models: Sequence[ModelRef]
) -> Iterator[tuple[Any, str, "Security | None"]]:
    """What a client connects to, the device of `models` there, and the certificate that a scheduler's address asks for.

    What was started brings its own certificate along, and ends with the block.
    """
    prepare(settings, models)
    import dask

    # Its settings are Dask's from its import on. Were one set for a time before, all would go with it when that ends,
    # and the next run of this process would find none.
    import distributed  # noqa: F401

    security = None if settings.security is None else certificate_in(settings.security)
    if settings.scheduler is not None:
        with dask.config.set(LIGHT):
            yield settings.scheduler, device, security
        return
    # Calls to a cluster that has lost its last worker fail after this time, and are not waited for without end.
    patience = {"distributed.scheduler.no-workers-timeout": settings.wait_seconds}
    with dask.config.set(patience | LIGHT | _forking(settings)):
        if settings.cluster_class is None:
            own = security or own_certificate()
            cluster = cluster_here(settings.workers, gpus := visible_gpus(device), own)
            device = "cuda" if gpus else "cpu"
        else:
            cluster = _cluster_of_class(settings.cluster_class, settings.arguments, security)
        with dask.config.set(PATIENCE_WITH_LOST_WORKERS if _runs_here(cluster, settings) else {}), cluster:
            _scale(cluster, settings)
            yield cluster, device, None
            # On a busy machine workers leave slowly and are killed then, which does no harm: no need to tell.
            logging.getLogger("distributed").setLevel(logging.ERROR)


def _forking(settings: ClusterSettings) -> dict[str, str]:
    """How the processes of this machine's own cluster start; that of a class says so itself."""
    return {} if settings.cluster_class else {"distributed.worker.multiprocessing-method": METHOD}


def _runs_here(cluster: Any, settings: ClusterSettings) -> bool:
    from distributed import LocalCluster

    return settings.cluster_class is None or isinstance(cluster, LocalCluster)


def _scale(cluster: Any, settings: ClusterSettings) -> None:
    if settings.maximum is not None:
        cluster.adapt(minimum=settings.minimum, maximum=settings.maximum)
    elif settings.workers is not None and settings.cluster_class is not None:
        cluster.scale(settings.workers)


def _cluster_of_class(path: str, arguments: Mapping[str, Any], security: "Security | None") -> Any:
    cluster_class = _import_class(path)
    certificate = security or _certificate_for(cluster_class, arguments)
    try:
        return cluster_class(**arguments, **({"security": certificate} if certificate else {}))
    except Exception as error:  # every cluster class raises errors of its own
        raise ClusterError(f"{path} with {dict(arguments)} does not start: {error}") from error


def _certificate_for(cluster_class: type[Any], arguments: Mapping[str, Any]) -> "Security | None":
    """The run's own certificate for processes on this machine; what else the arguments say of it stands."""
    from distributed import LocalCluster

    open_here = issubclass(cluster_class, LocalCluster) and arguments.get("processes", True)
    return own_certificate() if open_here and not {"security", "protocol"} & arguments.keys() else None


def _import_class(path: str) -> type[Any]:
    """The cluster class at an import path: nothing else that can be called will do."""
    from distributed.deploy.cluster import Cluster

    module, _, name = path.rpartition(".")
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise ClusterError(f"cluster class {path}: {package} is not installed: pip install {package.replace('_', '-')}")
    try:
        cluster_class = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ClusterError(f"cluster class {path}: {error}") from error
    if not (isinstance(cluster_class, type) and issubclass(cluster_class, Cluster)):
        raise ClusterError(f"{path} is not a Dask cluster class, which is a subclass of distributed.deploy.Cluster")
    return cluster_class
