"""An open cluster: not waited for without end, and left the way it ought to be."""

import os
import signal

import dask
import pytest
from local_clusters import in_threads

from flows.cluster import ClusterError, ClusterSettings, connect, open_cluster


def add(a: int, b: int) -> int:
    return a + b


def test_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 1)
    opening = open_cluster(ClusterSettings(scheduler="tcp://127.0.0.1:9"), "cpu", [])
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 within 1 s"), opening:
        pass


def test_cluster_without_workers_is_not_waited_for_without_end() -> None:
    none = in_threads(n_workers=0, wait_seconds=0.5)
    with pytest.raises(ClusterError, match=r"has no worker after 0.5 s"), open_cluster(none, "cpu", []):
        pass


@pytest.mark.dask
def test_running_cluster_is_left_as_it_was(dask_threads: str) -> None:
    for _ in range(2):
        with open_cluster(ClusterSettings(scheduler=dask_threads), "cuda:1", []) as opened:
            assert opened.inference.submit(add, 1, 2).result(timeout=30) == 3
            assert (opened.threads, opened.device) == (2, "cuda:1")


@pytest.mark.slow
@pytest.mark.dask
def test_worker_that_is_slow_to_come_back_is_waited_for() -> None:
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        open_cluster(ClusterSettings(workers=1, wait_seconds=120), "cpu", []) as opened,
    ):
        first = opened.reading.submit(os.getpid).result(timeout=120)
        os.kill(first, signal.SIGKILL)
        assert opened.reading.submit(os.getpid).result(timeout=120) != first
