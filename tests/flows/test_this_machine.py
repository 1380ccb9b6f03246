"""This machine's worker processes: their share of the cores, their GPUs, and that they are gone in the end."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import torch
from distributed import get_worker

from flows.cluster import ClusterError, ClusterSettings, open_cluster, this_machine
from wbc.models import registry


def describe_worker() -> dict[str, Any]:
    worker = get_worker()
    return {
        "pid": os.getpid(),
        "threads": torch.get_num_threads(),
        "address": worker.address,
        "folder": worker.local_directory,
        "calls": worker.state.nthreads,
        "hears_ctrl_c": signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []),
    }


def parent_of_worker() -> dict[str, Any]:
    parent = " ".join(psutil.Process().parent().cmdline())
    return {"pid": os.getpid(), "parent": parent, "threads": torch.get_num_threads()}


@pytest.mark.dask
def test_a_worker_that_is_long_in_coming_back_is_not_given_up() -> None:
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        open_cluster(ClusterSettings(workers=1, wait_seconds=120), "cpu", []) as opened,
    ):
        before = opened.inference.submit(describe_worker).result(timeout=120)
        os.kill(before["pid"], signal.SIGKILL)
        after = opened.inference.submit(describe_worker).result(timeout=120)
    assert after["pid"] != before["pid"]


@pytest.mark.dask
def test_this_machines_cluster_shares_the_cores_and_is_gone_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[dict[str, Any]] = []

    def interrupted() -> None:
        with open_cluster(ClusterSettings(workers=1, wait_seconds=120), "cpu", []) as opened:
            assert opened.device == "cpu"
            seen.append(opened.inference.submit(describe_worker).result(timeout=120))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (worker,) = seen
    assert worker["pid"] != os.getpid()
    assert worker["threads"] == len(os.sched_getaffinity(0))
    assert worker["calls"] == 1
    assert not worker["hears_ctrl_c"]
    assert worker["address"].startswith("tls://127.0.0.1:")
    assert not psutil.pid_exists(worker["pid"])
    assert not Path(worker["folder"]).exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "environment", "gpus"),
    [
        ("cpu", None, []),
        ("auto", None, ["0", "1"]),
        ("cuda", None, ["0", "1"]),
        ("cuda:1", None, ["1"]),
        ("cuda:1", "3,5", ["5"]),
        ("auto", "3,5", ["3", "5"]),
    ],
)
def test_device_names_gpus(
    device: str, environment: str | None, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "gpu_memory", lambda: [24 << 30] * 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if environment:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    assert [gpu.name for gpu in this_machine.visible_gpus(device)] == gpus


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "tpu"])
def test_device_that_is_not_there_is_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "gpu_memory", lambda: [24 << 30] * 2)
    with pytest.raises(ClusterError, match=device):
        this_machine.visible_gpus(device)


@pytest.mark.parametrize(
    ("gigabytes", "cores", "memory", "workers"),
    [
        ([], 8, 64, 8),
        ([], 8, 4, 2),
        ([140], 16, 128, 8),
        ([140], 64, 512, 8),
        ([140] * 2, 64, 512, 16),
        ([24] * 2, 12, 64, 6),
        ([8], 16, 64, 2),
        ([24], 16, 12, 2),
        ([140] * 8, 4, 16, 8),
        ([2], 1, 2, 1),
    ],
)
def test_workers_of_a_gpu_are_as_many_as_cores_and_memory_bear(
    gigabytes: list[int], cores: int, memory: int, workers: int
) -> None:
    gpus = [this_machine.Gpu(str(i), size << 30) for i, size in enumerate(gigabytes)]
    assert this_machine.workers_for(gpus, cores, memory << 30) == workers


def gpu_of_worker() -> tuple[int, str, float]:
    """Its process, the GPU that it sees, and how many calls of a model it takes at once."""
    time.sleep(0.3)  # so that the others get some, too
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], get_worker().state.total_resources["GPU"]


@pytest.mark.dask
def test_more_workers_than_gpus_share_them_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "gpu_memory", lambda: [24 << 30] * 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    seen: set[tuple[int, str, float]] = set()
    with open_cluster(ClusterSettings(workers=4, wait_seconds=120), "cuda", []) as opened:
        assert opened.device == "cuda"
        while len(seen) < 4:
            calls = [opened.inference.submit(gpu_of_worker) for _ in range(4)]
            seen |= {call.result(timeout=120) for call in calls}
    assert sorted((gpu, at_once) for _, gpu, at_once in seen) == [("3", 2), ("3", 2), ("5", 2), ("5", 2)]


@pytest.mark.dask
def test_workers_fork_from_a_process_that_has_the_models_libraries(dark_folder: Path) -> None:
    """Both the first worker and the one that takes the place of a dead one."""
    model, _ = registry.resolve(str(dark_folder), "detector")
    with open_cluster(ClusterSettings(workers=1, wait_seconds=120), "cpu", [model]) as opened:
        first = opened.inference.submit(parent_of_worker).result(timeout=120)
        os.kill(first["pid"], signal.SIGKILL)
        second = opened.inference.submit(parent_of_worker).result(timeout=120)
    assert first["pid"] != second["pid"]
    for worker in (first, second):
        assert "forkserver" in worker["parent"]
        assert worker["threads"] == len(os.sched_getaffinity(0))
    assert not psutil.pid_exists(second["pid"])
