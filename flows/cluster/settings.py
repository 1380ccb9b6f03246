"""Which cluster counts, as a TOML file or the command line says it."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt

from flows.cluster.errors import ClusterError
from wbc.configs import read_toml
from wbc.counting.parameters import CountParameters


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files, by the names that `distributed.Security` gives them.

    Where the scheduler's or the workers' are not named, they are the client's.
    """

    tls_ca_file: str
    tls_client_cert: str
    tls_client_key: str
    tls_scheduler_cert: str | None = None
    tls_scheduler_key: str | None = None
    tls_worker_cert: str | None = None
    tls_worker_key: str | None = None


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster counts: one that runs (`scheduler`, its address), one to start (`cluster_class`), or this machine.

    `cluster_class` (`class` in a file) is an import path, called with `arguments`. `workers` is their number, or from
    `minimum` to `maximum` as the work needs. The first worker may take `wait_seconds`, in a batch queue say. Only who
    holds the certificates of `security` may connect; without it, a cluster on this machine has one of its own.
    """

    scheduler: str | None = None
    cluster_class: Annotated[str | None, Field(alias="class")] = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    workers: PositiveInt | None = None
    minimum: PositiveInt = 1
    maximum: PositiveInt | None = None
    wait_seconds: PositiveFloat = 300.0
    security: TlsFiles | None = None

    def __post_init__(self) -> None:
        if self.cluster_class is not None:
            _check_import_path(self.cluster_class)
        if self.scheduler is not None and (self.cluster_class or self.workers or self.maximum):
            raise ClusterError(f"the cluster at {self.scheduler} has its workers: name no class and no number of them")
        if self.arguments and self.cluster_class is None:
            raise ClusterError(f"arguments {sorted(self.arguments)} belong to a class, and none is named")
        if self.workers is not None and self.maximum is not None:
            raise ClusterError(f"{self.workers} workers and a maximum of {self.maximum}: one of the two")
        if self.maximum is not None and (self.cluster_class is None or self.minimum > self.maximum):
            raise ClusterError(f"from {self.minimum} to {self.maximum} workers: 1 or more, of a class that can adapt")

    def overridden(self, workers: int | None, scheduler: str | None) -> "ClusterSettings":
        """These settings with what was asked for on top: a scheduler's address replaces any other cluster."""
        if scheduler is not None:
            return ClusterSettings(
                scheduler=scheduler, workers=workers, wait_seconds=self.wait_seconds, security=self.security
            )
        return self if workers is None else replace(self, workers=workers, minimum=1, maximum=None)


def _check_import_path(path: str) -> None:
    """Raises ClusterError where `path` can be no cluster class: what can be said without importing anything."""
    if not all(map(str.isidentifier, path.split("."))) or "." not in path:
        raise ClusterError(f"{path!r} is not the import path of a class, like dask_jobqueue.SLURMCluster")
    if path.partition(".")[0] in sys.stdlib_module_names:
        raise ClusterError(f"{path} is part of Python itself, no Dask cluster")


def read_settings(path: str) -> ClusterSettings:
    """The settings in a TOML file. Raises ValueError naming the file and what is wrong in it."""
    return read_toml(path, ClusterSettings)


def settings_of(parameters: CountParameters) -> ClusterSettings:
    """The cluster that a count asks for: that of its settings file, with what it was told besides on top."""
    settings = read_settings(parameters.settings) if parameters.settings else ClusterSettings()
    return settings.overridden(parameters.workers, parameters.scheduler)
