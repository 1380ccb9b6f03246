"""Cluster classes: what is wrong with one in words, and what one without workers comes to."""

from collections.abc import Callable

import pytest
from distributed import get_worker
from distributed.scheduler import NoWorkerError

from flows.cluster import ClusterError, ClusterSettings, open_cluster

InThreads = Callable[..., ClusterSettings]


def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package.SomeCluster", "pip install no-such-package"),
        ("distributed.NoSuchCluster", "NoSuchCluster"),
        ("LocalCluster", "not the import path"),
        ("distributed.deploy.nowhere.Cluster", "distributed.deploy.nowhere"),
    ],
)
def test_class_that_is_not_there_is_named(path: str, words: str) -> None:
    with pytest.raises(ClusterError) as error, open_cluster(ClusterSettings(cluster_class=path), "cpu", []):
        pass
    assert words in str(error.value)
    assert path in str(error.value)


def test_class_that_does_not_start_is_named_with_its_arguments(in_threads: InThreads) -> None:
    opening = open_cluster(in_threads(host="no host"), "cpu", [])
    with pytest.raises(ClusterError, match=r"distributed.LocalCluster with \{.*'host'.*does not start"), opening:
        pass


def leave() -> None:
    worker = get_worker()
    worker.loop.add_callback(worker.close)


@pytest.mark.dask
def test_calls_to_a_cluster_without_workers_fail_in_the_end(in_threads: InThreads) -> None:
    with open_cluster(in_threads(wait_seconds=1), "cpu", []) as opened:
        opened.reading.submit(leave)
        with pytest.raises(NoWorkerError, match="without any running workers"):
            opened.reading.submit(add, 1, 2).result(timeout=60)
