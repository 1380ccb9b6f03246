"""Which cluster counts, as a TOML file or the command line says it."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from flows.cluster.errors import ClusterError


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster counts: one that runs (`scheduler`, its address), one to start (`cluster_class`), or this machine.

    `cluster_class` (`class` in a file) is an import path, called with `arguments`. `workers` is their number, or from
    `minimum` to `maximum` as the work needs. The first worker may take `wait_seconds`, in a batch queue say.
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
            raise ClusterError(f"arguments {sorted(self.arguments)} belong to a class, and none is named")
        if self.workers is not None and (self.workers < 1 or self.maximum is not None):
            raise ClusterError(
                f"{self.workers} workers and a maximum of {self.maximum}: one positive number of the two"
            )
        if self.maximum is not None and (self.cluster_class is None or not 1 <= self.minimum <= self.maximum):
            raise ClusterError(f"from {self.minimum} to {self.maximum} workers: 1 or more, of a class that can adapt")

    def overridden(self, workers: int | None, scheduler: str | None) -> "ClusterSettings":
        """These settings with what was asked for on top: a scheduler's address replaces any other cluster."""
        if scheduler is not None:
            return ClusterSettings(scheduler=scheduler, workers=workers, wait_seconds=self.wait_seconds)
        return self if workers is None else replace(self, workers=workers, minimum=1, maximum=None)


def read_settings(path: str) -> ClusterSettings:
    """The settings in a TOML file.

    Raises ClusterError naming the file and what is wrong in it, OSError where it cannot be read.
    """
    keys = {"class" if f.name == "cluster_class" else f.name for f in fields(ClusterSettings)}
    try:
        values = tomllib.loads(Path(path).read_text())
        if unknown := sorted(set(values) - keys):
            raise ClusterError(f"unknown settings {unknown}; there are {sorted(keys)}")
        return ClusterSettings(**{"cluster_class" if k == "class" else k: v for k, v in values.items()})
    except (ValueError, TypeError) as error:
        raise ClusterError(f"{path}: {error}") from error
