"""Calls on a cluster's workers, and the check that each worker has this machine's code and models."""

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for_all
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4
from weakref import WeakSet

import wbc
from flows.cluster.errors import ClusterError
from wbc.engine import EngineChoice
from wbc.models.engines import check_engine
from wbc.models.registry import ModelError, ModelRef, read_card
from wbc.revision import code_revision

if TYPE_CHECKING:
    from distributed import Client

P = ParamSpec("P")
T = TypeVar("T")

CHUNK_RETRIES = 2
CLOSE_SECONDS = 10


def check_workers(client: "Client", models: Sequence[ModelRef], engine: EngineChoice) -> None:
    """Raises ClusterError naming a worker whose code or `models` are not this machine's, or without the `engine`."""
    expected = describe_worker([])[:2]
    for worker, answer in client.run(describe_worker, list(models), engine, on_error="return").items():
        if isinstance(answer, Exception):
            raise ClusterError(f"worker {worker} cannot say which wbc it has: {type(answer).__name__}: {answer}")
        if answer[:2] != expected:
            theirs, ours = (f"{version} ({revision[:12]})" for version, revision in (answer[:2], expected))
            raise ClusterError(f"worker {worker} has wbc {theirs}, this machine {ours}: install the same on both")
        if answer[2]:
            raise ClusterError(f"worker {worker}: {answer[2]}")


def describe_worker(models: Sequence[ModelRef], engine: EngineChoice = "auto") -> tuple[str, str, str]:
    """On a worker: the version and code revision of its wbc, and what is wrong with its `models` or `engine`, or ""."""
    faults = []
    try:
        check_engine(engine)
    except ModelError as error:
        faults.append(str(error))
    for model in models:
        try:
            digest = read_card(model.reference).digest
        except ModelError as error:
            faults.append(str(error))
            continue
        if digest != model.digest:
            faults.append(f"{model.reference!r} is {digest[:12]}… there, {model.digest[:12]}… on this machine")
    return wbc.__version__, code_revision(), "; ".join(faults)


def run_checked(revision: str, call: bytes) -> Any:
    """On a worker: make a pickled call. Raises ClusterError where the worker's code is not that of `revision`."""
    if code_revision() != revision:
        from distributed import get_worker

        theirs = f"{wbc.__version__} ({code_revision()[:12]})"
        raise ClusterError(f"worker {get_worker().address} has wbc {theirs}, the count began with {revision[:12]}")
    function, args, kwargs = pickle.loads(call)
    return function(*args, **kwargs)


class CheckedExecutor(Executor):
    """Runs calls on the workers of a cluster that have this machine's code, also on those that join it later.

    A call that raises, or whose worker dies, is tried again elsewhere. Leaving the block cancels what is not done.
    """

    def __init__(self, client: "Client", resources: Mapping[str, float] | None = None) -> None:
        options = {"resources": dict(resources)} if resources else {}
        self._dask: Any = client.get_executor(pure=False, retries=CHUNK_RETRIES, **options)  # type: ignore[no-untyped-call]
        self._revision = code_revision()
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._lock, self._closed = threading.Lock(), False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedule a call. Raises RuntimeError once the cluster is closed."""
        # As bytes, which the scheduler hands on as they are: arguments it would unpickle, and pickle again.
        call = pickle.dumps((fn, args, kwargs), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            if self._closed:
                raise RuntimeError("the cluster is closed")
            key = f"{fn.__name__}-{uuid4().hex}"
            future: Future[T] = self._dask.submit(run_checked, self._revision, call, key=key)
            self._futures.add(future)
            return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel what is not done, so that nobody waits for it any longer."""
        with self._lock:
            self._closed = True
            pending = [future for future in self._futures if not future.done()]
        for future in pending:
            future.cancel()
        if wait:
            # Dask tells those who wait that a call is cancelled once its own loop has heard of it, which a loop that
            # ends may never: then it is told here.
            for future in wait_for_all(pending, timeout=CLOSE_SECONDS).not_done:
                future.set_running_or_notify_cancel()
