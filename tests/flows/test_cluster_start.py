"""Cluster classes: what is wrong with one in words, and what one without workers comes to."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client, get_worker
from distributed.scheduler import NoWorkerError
from local_clusters import in_threads

from flows.cluster import ClusterError, ClusterSettings, open_cluster
from flows.cluster.executor import CheckedExecutor
from flows.cluster.start import start


def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package.SomeCluster", "pip install no-such-package"),
        ("distributed.NoSuchCluster", "NoSuchCluster"),
        ("distributed.deploy.nowhere.Cluster", "distributed.deploy.nowhere"),
    ],
)
def test_class_that_is_not_there_is_named(path: str, words: str) -> None:
    with pytest.raises(ClusterError) as error, open_cluster(ClusterSettings(cluster_class=path), "cpu", []):
        pass
    assert words in str(error.value)
    assert path in str(error.value)


@pytest.mark.parametrize("path", ["distributed.get_client", "distributed.Client", "numpy.testing.assert_equal"])
def test_callable_that_is_no_cluster_class_is_not_called(path: str) -> None:
    settings = ClusterSettings(cluster_class=path, arguments={"address": "true"})
    words = rf"{path} is not a Dask cluster class.*distributed.deploy.Cluster"
    with pytest.raises(ClusterError, match=words), open_cluster(settings, "cpu", []):
        pass


@pytest.mark.dask
def test_subclass_of_a_cluster_in_a_package_of_the_site_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site_clusters.py").write_text("import distributed\n\nclass Ours(distributed.LocalCluster): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = replace(in_threads(), cluster_class="site_clusters.Ours")
    with open_cluster(settings, "cpu", []) as opened:
        assert opened.reading.submit(add, 1, 2).result(timeout=60) == 3


def test_class_that_does_not_start_is_named_with_its_arguments() -> None:
    opening = open_cluster(in_threads(host="no host"), "cpu", [])
    with pytest.raises(ClusterError, match=r"distributed.LocalCluster with \{.*'host'.*does not start"), opening:
        pass


TWICE = """
from flows.cluster import ClusterSettings, open_cluster
own = {"processes": False, "n_workers": 1, "dashboard_address": "127.0.0.1:0"}
for _ in range(2):
    with open_cluster(ClusterSettings(None, "distributed.LocalCluster", own), "cpu", []) as cluster:
        print(cluster.reading.submit(abs, -7).result(timeout=60))
"""


@pytest.mark.dask
def test_a_process_opens_a_cluster_more_than_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["7", "7"], done.stderr


@pytest.mark.dask
def test_loops_do_not_look_fifty_times_a_second_whether_they_are_late() -> None:
    with start(in_threads(), "cpu", []) as (cluster, _, _):
        servers = [cluster.scheduler, *cluster.workers.values()]
        assert {server.periodic_callbacks["tick"].callback_time for server in servers} == {500}


def leave() -> str:
    worker = get_worker()
    worker.loop.call_later(0.1, worker.close)
    return str(worker.address)


@pytest.mark.dask
def test_calls_to_a_cluster_without_workers_fail_in_the_end() -> None:
    with (
        start(in_threads(wait_seconds=1), "cpu", []) as (cluster, _, _),
        Client(cluster, set_as_default=False) as client,
        CheckedExecutor(client) as executor,
    ):
        executor.submit(leave).result(timeout=60)
        while cluster.scheduler.workers:
            time.sleep(0.01)
        with pytest.raises(NoWorkerError, match="without any running workers"):
            executor.submit(add, 1, 2).result(timeout=60)
