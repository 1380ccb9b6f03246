"""The stages of a training, each a Prefect task. A server that is away for a time is waited for."""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun

from flows.cluster.errors import PERMANENT
from flows.slide_table import markdown_text
from wbc.evaluation.frozen import read_frozen
from wbc.evaluation.promotion import decide
from wbc.models import tracking
from wbc.models.registry import resolve_device
from wbc.models.versions import CHALLENGER, DIGEST, NAMES, Fit, register, set_alias, version_of, versions
from wbc.training.following import complete, followed
from wbc.training.orders import Order, Settled, Trained, fulfil, settle
from wbc.training.progress import Curves, read_curves, watching

log = logging.getLogger(__name__)
RETRY_SECONDS = [10.0, 30.0, 60.0, 120.0, 300.0, *[600.0] * 12]  # two hours and a half
POLL_SECONDS = 5.0


def _is_away(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage failed because MLflow, or its files, could not be reached: an OSError stands at the bottom.

    Not one that waiting does not mend: a config that is not there, a full disk.
    """
    error = state.data
    while isinstance(error, BaseException):
        if isinstance(error, OSError):
            if error.errno in PERMANENT:
                return False
            get_run_logger().warning("%s: waiting, then trying again", state.message)
            return True
        error = error.__cause__ or error.__context__
    return False


_asking_mlflow = task(
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_is_away,
    cache_policy=NO_CACHE,
    persist_result=False,
)


@_asking_mlflow
def settle_order(order: Order) -> Settled:
    """Pin what an order says."""
    return settle(order)


@_asking_mlflow
def begin_run(settled: Settled) -> str:
    """Begin a run of MLflow's for a training; its id."""
    return tracking.begin_run(NAMES[settled.order.task], settled.folder.name, settled.facts)


def trained_version(settled: Settled) -> tuple[Trained, str]:
    """Train and register: what was trained, and the reference of its version."""
    run_id = begin_run(settled)
    trained = train(settled, run_id)
    return trained, register_version(trained, run_id)


@task(cache_policy=NO_CACHE, persist_result=False)
def train(settled: Settled, run_id: str) -> Trained:
    """Train, followed in MLflow and by a progress artifact; what was stopped goes on from its last checkpoint."""
    with closing(Progress(settled.folder.name)) as progress:
        with followed(run_id) as live, watching(live, progress):
            try:
                trained = fulfil(settled)
            except BaseException:
                with suppress(Exception):
                    tracking.end_run(run_id, failed=True)
                raise
        wait_for_server()
    return trained


@_asking_mlflow
def register_version(trained: Trained, run_id: str) -> str:
    """Make what was trained a version, unless it is one; the reference that means it for ever."""
    name = NAMES[trained.task]
    for version in versions(name):
        if version.tags.get(DIGEST) == trained.card.digest:
            tracking.end_run(run_id)
            return version.reference
    complete(run_id, read_curves(trained.folder))
    snapshot = trained.facts["snapshot"]
    fit = Fit(files=trained.files, params=trained.facts, dataset_digest=snapshot or trained.card.dataset, run_id=run_id)
    return f"models:/{name}/{register(trained.folder, name, fit)}"


@_asking_mlflow
def challenge(reference: str) -> None:
    """Make a version the challenger of its name."""
    version = version_of(reference)
    set_alias(version.name, CHALLENGER, version.number)


@_asking_mlflow
def gate(reference: str, frozen: Path, data: Path, device: str) -> str:
    """Let the gate decide whether a version takes the champion's place; its decision in a sentence.

    Both columns of figures are a table artifact.
    """
    decision = decide(reference, read_frozen(frozen, data), resolve_device(device))
    sentence = decision.headline()
    name = version_of(reference).name
    create_table_artifact(decision.lines(), key=f"gate-{name}", description=markdown_text(sentence))
    get_run_logger().info(sentence)
    return sentence


class Progress:
    """Watches a training and shows how far it is: a progress artifact of the flow run, and lines in its log.

    The artifact is sent from a thread of its own: a server that does not answer costs it some updates, never the
    training's time.
    """

    def __init__(self, name: str) -> None:
        self.name, self.steps, self._began, self._first = name, 1, time.monotonic(), 0
        self._artifact: UUID | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefect")
        self._last: Future[None] | None = None
        self._newest, self._is_away = (0.0, name), False

    def begins(self, name: str, step: int, steps: int) -> None:
        """Its clock starts."""
        self.steps, self._began, self._first = steps, time.monotonic(), step
        self._report(step, f"{self.name}: step {step} of {steps}")

    def step_done(self, step: int, losses: Mapping[str, float]) -> None:
        """Shown with the next checkpoint."""

    def checkpointed(self, step: int, curves: Curves) -> None:
        """Show the loss and the time that is left."""
        left = (time.monotonic() - self._began) / max(1, step - self._first) * (self.steps - step)
        recent = curves.total_loss[-20:]
        line = (
            f"{self.name}: step {step} of {self.steps}, loss {sum(recent) / len(recent):.3f}, {left / 60:.0f} min left"
        )
        get_run_logger().info(line)
        self._report(step, line)

    def close(self) -> None:
        """Show how far it came in the end."""
        self._submit()
        self._thread.shutdown(wait=True)

    def _report(self, step: int, line: str) -> None:
        """Send it, unless the thread still waits for an answer."""
        self._newest = 100 * step / self.steps, line
        if self._last is None or self._last.done():
            self._submit()

    def _submit(self) -> None:
        context, (percent, line) = copy_context(), self._newest  # in it Prefect finds the flow run
        self._last = self._thread.submit(lambda: context.run(self._show, percent, line))

    def _show(self, percent: float, line: str) -> None:
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, key=self.name.lower(), description=line)  # type: ignore[assignment]
            else:
                update_progress_artifact(self._artifact, percent, description=line)
        except Exception as error:  # whatever it is, it must not cost the training
            if not self._is_away:
                log.warning("no progress artifact: Prefect's server does not answer, training goes on (%s)", error)
            self._is_away = True
            return
        if self._is_away:
            log.warning("Prefect's server answers again: %s", line)
        self._is_away = False


def wait_for_server() -> None:
    """Wait until Prefect's server answers, so that it hears of what was done; says when that takes long."""
    told = False
    with get_client(sync_client=True) as client:
        while (error := client.api_healthcheck()) is not None:
            if not told:
                log.warning("Prefect's server does not answer: waiting for it (%s)", error)
            told = True
            time.sleep(POLL_SECONDS)
    if told:
        log.warning("Prefect's server answers again")
