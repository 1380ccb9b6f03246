"""A cluster: which one settings mean, what is wrong with it in words, and that it is left as it ought to be."""

import errno
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import torch
from distributed import Client, KilledWorker, get_worker
from distributed.scheduler import NoWorkerError

from flows import cluster
from flows.cluster import CheckedExecutor, ClusterError, ClusterSettings, open_cluster, read_settings
from wbc.models import registry
from wbc.models.registry import ModelRef

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"
IN_THREADS = {"processes": False, "n_workers": 1, "dashboard_address": "127.0.0.1:0"}


def in_threads(**changes: Any) -> ClusterSettings:
    return ClusterSettings(cluster_class="distributed.LocalCluster", arguments=IN_THREADS | changes)


def add(a: int, b: int) -> int:
    return a + b


RELEASE = threading.Event()


def wait_for_release() -> None:
    RELEASE.wait(60)


class Overlap:
    """How many calls of a kind run at once at most; `both` meets where two do."""

    def __init__(self) -> None:
        self.lock, self.both = threading.Lock(), threading.Barrier(2, timeout=30)
        self.running, self.most = Counter[str](), Counter[str]()


OVERLAP = Overlap()


def note_overlap(kind: str) -> None:
    with OVERLAP.lock:
        OVERLAP.running[kind] += 1
        OVERLAP.most[kind] = max(OVERLAP.most[kind], OVERLAP.running[kind])
    if kind == "read":
        OVERLAP.both.wait()
    else:
        time.sleep(0.05)
    with OVERLAP.lock:
        OVERLAP.running[kind] -= 1


def test_settings_file_names_a_class_with_arguments(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('class = "a.B"\nminimum = 2\nmaximum = 4\nwait_seconds = 9\n[arguments]\nqueue = "gpu"\n')
    found = read_settings(str(path))
    assert found == ClusterSettings(None, "a.B", {"queue": "gpu"}, None, 2, 4, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wrokers = 2", "unknown settings ['wrokers']"),
        ("workers = ", "site.toml"),
        ("workers = 0", "0 workers"),
        ('workers = "two"', "site.toml"),
        ('scheduler = "tcp://a:1"\nclass = "a.B"', "tcp://a:1 has its workers"),
        ("[arguments]\nqueue = 1", "none is named"),
        ('class = "a.B"\nminimum = 5\nmaximum = 4', "from 5 to 4"),
        ("maximum = 4", "can adapt"),
        ('class = "a.B"\nworkers = 2\nmaximum = 4', "maximum of 4"),
    ],
)
def test_wrong_settings_are_refused_with_file_and_reason(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ClusterError) as error:
        read_settings(str(path))
    assert words in str(error.value)
    assert "site.toml" in str(error.value)


@pytest.mark.parametrize("path", sorted(DEPLOYMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_settings_are_understood(path: Path) -> None:
    assert read_settings(str(path)).wait_seconds >= 60


def test_what_is_asked_for_overrides_the_settings() -> None:
    site = ClusterSettings(cluster_class="a.B", arguments={"queue": "gpu"}, maximum=8, wait_seconds=9)
    assert site.overridden(None, None) == site
    assert site.overridden(3, None).workers == 3
    assert site.overridden(3, None).maximum is None
    assert site.overridden(None, "tcp://a:1") == ClusterSettings(scheduler="tcp://a:1", wait_seconds=9)
    with pytest.raises(ClusterError, match="has its workers"):
        site.overridden(3, "tcp://a:1")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package.SomeCluster", "pip install no-such-package"),
        ("distributed.NoSuchCluster", "NoSuchCluster"),
        ("LocalCluster", "no import path"),
        ("distributed.deploy.nowhere.Cluster", "distributed.deploy.nowhere"),
    ],
)
def test_class_that_is_not_there_is_named(path: str, words: str) -> None:
    with pytest.raises(ClusterError) as error, open_cluster(ClusterSettings(cluster_class=path), "cpu", []):
        pass
    assert words in str(error.value)
    assert path in str(error.value)


def test_class_that_does_not_start_is_named_with_its_arguments() -> None:
    opening = open_cluster(in_threads(host="no host"), "cpu", [])
    with pytest.raises(ClusterError, match=r"distributed.LocalCluster with \{.*'host'.*does not start"), opening:
        pass


def test_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    opening = open_cluster(ClusterSettings(scheduler="tcp://127.0.0.1:9"), "cpu", [])
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 within 1 s"), opening:
        pass


def test_cluster_without_workers_is_not_waited_for_without_end() -> None:
    none = ClusterSettings(None, "distributed.LocalCluster", IN_THREADS | {"n_workers": 0}, wait_seconds=0.5)
    with pytest.raises(ClusterError, match=r"has no worker after 0.5 s"), open_cluster(none, "cpu", []):
        pass


@pytest.mark.dask
def test_worker_with_other_code_is_named(dask_threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = cluster.describe_here([])
    # The workers are threads of this process: only what this machine expects is made to differ.
    answers = iter([(ours[0], "0" * 64, "")])
    real = cluster.describe_here
    monkeypatch.setattr(cluster, "describe_here", lambda models: next(answers, None) or real(models))
    opening = open_cluster(ClusterSettings(scheduler=dask_threads), "cpu", [])
    words = rf"worker inproc://\S+ has wbc .*{ours[1][:12]}.*this machine .*000000"
    with pytest.raises(ClusterError, match=words), opening:
        pass


@pytest.mark.dask
def test_worker_with_other_models_is_named(dask_threads: str, dark_folder: Path) -> None:
    here, _ = registry.resolve(str(dark_folder), "detector")
    other = ModelRef(here.reference, "0" * 64)
    gone = ModelRef("/no/such/model", "0" * 64)
    for model, words in ((other, "000000000000"), (gone, "/no/such/model")):
        opening = open_cluster(ClusterSettings(scheduler=dask_threads), "cpu", [model])
        with pytest.raises(ClusterError, match=rf"worker inproc://\S+: .*{words}"), opening:
            pass


@pytest.mark.dask
def test_worker_that_joins_later_is_checked_too(dask_threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(dask_threads, set_as_default=False) as client:
        executor = CheckedExecutor(client)
        assert executor.submit(add, 1, 2).result(timeout=30) == 3
        monkeypatch.setattr(cluster, "code_revision", lambda: "f" * 64)
        with pytest.raises(ClusterError, match=r"worker inproc://\S+ has wbc .*ffffffffffff"):
            executor.submit(add, 1, 2).result(timeout=30)


@pytest.mark.dask
def test_running_cluster_is_left_as_it_was(dask_threads: str) -> None:
    for _ in range(2):
        with open_cluster(ClusterSettings(scheduler=dask_threads), "cuda:1", []) as opened:
            assert opened.inference.submit(add, 1, 2).result(timeout=30) == 3
            assert (opened.threads, opened.device) == (2, "cuda:1")


@pytest.mark.dask
def test_leaving_cancels_what_is_not_done_and_takes_nothing_more(dask_threads: str) -> None:
    with open_cluster(ClusterSettings(scheduler=dask_threads), "cpu", []) as opened:
        futures = [opened.reading.submit(wait_for_release) for _ in range(6)]
        began = time.monotonic()
    assert time.monotonic() - began < 15
    with pytest.raises(CancelledError):
        futures[-1].result(timeout=0)
    with pytest.raises(RuntimeError, match="closed"):
        opened.reading.submit(add, 1, 2)
    RELEASE.set()


@pytest.mark.dask
def test_model_has_a_gpu_for_itself_while_fields_are_read() -> None:
    with open_cluster(in_threads(threads_per_worker=3, resources={"GPU": 1}), "cpu", []) as opened:
        inferred = [opened.inference.submit(note_overlap, "infer") for _ in range(4)]
        read = [opened.reading.submit(note_overlap, "read") for _ in range(2)]
        for future in inferred + read:
            future.result(timeout=60)
    assert OVERLAP.most == {"read": 2, "infer": 1}


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


def leave() -> None:
    worker = get_worker()
    worker.loop.add_callback(worker.close)


@pytest.mark.dask
def test_calls_to_a_cluster_without_workers_fail_in_the_end() -> None:
    lonely = ClusterSettings(None, "distributed.LocalCluster", IN_THREADS, wait_seconds=1)
    with open_cluster(lonely, "cpu", []) as opened:
        opened.reading.submit(leave)
        with pytest.raises(NoWorkerError, match="without any running workers"):
            opened.reading.submit(add, 1, 2).result(timeout=60)


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
    assert worker["address"].startswith("tcp://127.0.0.1:")
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
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if environment:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    assert cluster.visible_gpus(device) == gpus


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "tpu"])
def test_device_that_is_not_there_is_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ClusterError, match=device):
        cluster.visible_gpus(device)


def killed() -> KilledWorker:
    return KilledWorker("chunk", None, 3)


@pytest.mark.parametrize(
    ("make", "again", "words"),
    [
        (lambda: OSError(errno.EIO, "Input/output error", "/a"), True, "Input/output error: /a"),
        (lambda: OSError("connection lost"), True, "connection lost"),
        (lambda: OSError(errno.ENOSPC, "No space left on device", "/a"), False, "No space left on device: /a"),
        (lambda: PermissionError(errno.EACCES, "Permission denied", "/a"), False, "Permission denied: /a"),
        (lambda: ValueError("two\nlines"), False, "ValueError: two lines"),
        (killed, True, "a worker died 4 times"),
        (CancelledError, False, "CancelledError"),
    ],
)
def test_errors_that_may_pass_are_told_from_those_that_last(
    make: Callable[[], Exception], again: bool, words: str
) -> None:
    assert cluster.worth_retrying(make()) is again
    assert words in cluster.reason(make())
