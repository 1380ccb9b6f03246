"""Calls on workers: only on those with this machine's code and models, one a GPU, none after the end."""

import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import pytest
from distributed import Client
from local_clusters import in_threads

from flows.cluster import ClusterError, ClusterSettings, executor, open_cluster
from flows.cluster.executor import CheckedExecutor
from wbc.models import registry
from wbc.models.registry import ModelRef

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


def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.dask
def test_worker_with_other_code_is_named(dask_threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = executor.describe_worker([])
    # The workers are threads of this process: only what this machine expects is made to differ.
    answers = iter([(ours[0], "0" * 64, "")])
    real = executor.describe_worker
    monkeypatch.setattr(executor, "describe_worker", lambda *asked: next(answers, None) or real(*asked))
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
        checked = CheckedExecutor(client)
        assert checked.submit(add, 1, 2).result(timeout=30) == 3
        monkeypatch.setattr(executor, "code_revision", lambda: "f" * 64)
        with pytest.raises(ClusterError, match=r"worker inproc://\S+ has wbc .*ffffffffffff"):
            checked.submit(add, 1, 2).result(timeout=30)


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


def test_who_waits_for_a_call_that_ends_while_it_is_cancelled_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        """A client whose calls never tell how they end, as Dask's do that are done when they are cancelled."""

        def get_executor(self, **_: object) -> "Silent":
            return self

        def submit(self, *_: object, **__: object) -> "Future[None]":
            return Future()

    monkeypatch.setattr(executor, "CLOSE_SECONDS", 0.1)
    client: Any = Silent()
    with CheckedExecutor(client) as calls:
        call = calls.submit(wait_for_release)
    done, _ = wait([call], timeout=10)
    assert done == {call}


@pytest.mark.dask
def test_model_has_a_gpu_for_itself_while_fields_are_read() -> None:
    with open_cluster(in_threads(threads_per_worker=3, resources={"GPU": 1}), "cpu", []) as opened:
        inferred = [opened.inference.submit(note_overlap, "infer") for _ in range(4)]
        read = [opened.reading.submit(note_overlap, "read") for _ in range(2)]
        for future in inferred + read:
            future.result(timeout=60)
    assert OVERLAP.most == {"read": 2, "infer": 1}
