"""An open cluster, ready to count: its first worker is up, with this machine's code and models."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.cluster.errors import ClusterError
from flows.cluster.executor import CheckedExecutor, check_workers
from flows.cluster.settings import ClusterSettings
from flows.cluster.start import start
from wbc.engine import EngineChoice
from wbc.models.registry import ModelRef

if TYPE_CHECKING:
    from distributed import Client, Security

CONNECT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Cluster:
    """An open cluster: where fields are read, and where models run (so many calls as workers offer GPUs for, if any).

    `threads` is how many calls run at once; `device` what models are to run on there, on `gpus` that workers offer or
    not.
    """

    reading: Executor
    inference: Executor
    threads: int
    device: str
    gpus: bool


@contextmanager
def open_cluster(
    settings: ClusterSettings, device: str, models: Sequence[ModelRef], engine: EngineChoice = "auto"
) -> Iterator[Cluster]:
    """The cluster of `settings` with a first worker up that has the `engine`, and this machine's code and `models`.

    However the block is left, calls under way are cancelled, and a cluster that was started here is closed; one that
    ran before runs on. Raises ClusterError.
    """
    with (
        _quiet(),
        start(settings, device, models) as (where, device_there, security),
        _connect(where, security) as client,
    ):
        _wait_for_worker(client, settings)
        check_workers(client, models, engine)
        threads, resources = _capacity(client, settings)
        with CheckedExecutor(client) as reading, CheckedExecutor(client, resources) as inference:
            yield Cluster(reading, inference, threads, device_there, bool(resources))


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's log from warnings on: at its default level each worker that comes is ten lines."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _connect(where: Any, security: "Security | None") -> "Client":
    from distributed import Client

    # A default client is the one that other people's code in this process would pick up unasked.
    try:
        return Client(where, security=security, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except TypeError as error:  # so Dask says it
        raise ClusterError(
            f"the scheduler at {where} wants a certificate: name it in a settings file's [security]"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Dask scheduler answers at {where} within {CONNECT_SECONDS} s: {error}") from error


def _wait_for_worker(client: "Client", settings: ClusterSettings) -> None:
    try:
        client.wait_for_workers(1, timeout=settings.wait_seconds)
    except TimeoutError as error:
        where = settings.scheduler or settings.cluster_class or "this machine"
        raise ClusterError(f"the cluster of {where} has no worker after {settings.wait_seconds:g} s") from error


def _capacity(client: "Client", settings: ClusterSettings) -> tuple[int, dict[str, float]]:
    """How many calls run at once, when all workers are there; and the resources that a call of a model needs."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    threads = sum(w["nthreads"] for w in workers)
    threads = max(threads, (settings.maximum or 0) * threads // len(workers))
    return threads, {"GPU": 1} if any(w["resources"].get("GPU") for w in workers) else {}
