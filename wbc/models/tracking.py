"""The one room that knows MLflow: what its server, or a SQLite file, keeps of models and of the runs that made them.

Where that is says `MLFLOW_TRACKING_URI`; without it, it is MLflow's own default, mlflow.db in the folder that a command
is run in. MLflow takes seconds to import, so that it is imported when it is asked for. A server that does not answer is
asked again for some minutes, as `MLFLOW_HTTP_REQUEST_MAX_RETRIES` says; then a `ModelError` says so.
"""

import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from wbc.models.cards import ModelError

REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<number>\d+)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A version of a registered model: its aliases, when it came, its run, and what is told of it in figures and words.

    `files` is the address of its artifacts.
    """

    name: str
    number: int
    aliases: tuple[str, ...]
    created_at: datetime
    run_id: str
    files: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]

    @property
    def reference(self) -> str:
        """The one reference that means this version for ever."""
        return f"models:/{self.name}/{self.number}"


def _mlflow() -> Any:
    """MLflow, which tells nobody that it is used."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is read when mlflow is imported
    try:
        import mlflow
        import mlflow.artifacts
    except ModuleNotFoundError as error:
        raise ModelError("a registry of models needs MLflow: pip install 'wbc[mlflow]'") from error
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return mlflow


@contextmanager
def _asking(what: str) -> Iterator[Any]:
    """MLflow's client. Whatever goes wrong within is a ModelError that says what was asked, where, and why not."""
    mlflow = _mlflow()
    try:
        yield mlflow.MlflowClient()
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{what} in MLflow at {mlflow.get_tracking_uri()}: {reason}") from error


def pinned(reference: str) -> str:
    """A reference `models:/NAME@ALIAS` as the version that it means now; one of a version as it is.

    Raises ModelError where there is no such version.
    """
    return version_at(reference).reference


def version_at(reference: str) -> StoredVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` means now. Raises ModelError where none is."""
    parts = REFERENCE.fullmatch(reference)
    if parts is None:
        raise ModelError(f"{reference!r} is neither models:/NAME@ALIAS nor models:/NAME/NUMBER")
    with _asking(f"no model {reference!r}") as client:
        if parts["alias"]:
            found = client.get_model_version_by_alias(parts["name"], parts["alias"])
        else:
            found = client.get_model_version(parts["name"], parts["number"])
        return _stored(client, found)


def stored_version(name: str, number: int) -> StoredVersion:
    """One version. Raises ModelError where there is none."""
    return version_at(f"models:/{name}/{number}")


def stored_versions(name: str) -> list[StoredVersion]:
    """All versions of a registered model, the newest first; none where no model has the name."""
    with _asking(f"cannot list {name!r}") as client:
        found = client.search_model_versions(f"name = '{name}'", max_results=1000)
        versions = [_stored(client, client.get_model_version(name, one.version)) for one in found]
    return sorted(versions, key=lambda version: -version.number)


def _stored(client: Any, found: Any) -> StoredVersion:
    metrics = client.get_run(found.run_id).data.metrics if found.run_id else {}
    return StoredVersion(
        name=found.name,
        number=int(found.version),
        aliases=tuple(sorted(found.aliases)),
        created_at=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        run_id=found.run_id or "",
        files=client.get_model_version_download_uri(found.name, found.version),
        metrics=metrics,
        tags=dict(found.tags),
    )


def fetch(reference: str) -> Path:
    """The folder with a version's files: where MLflow has them on this machine, else a copy that this process keeps.

    A version is asked for once a process: who has it does not miss the server. Raises ModelError where there is none.
    """
    parts = REFERENCE.fullmatch(reference)
    exact = reference if parts is not None and parts["number"] else pinned(reference)
    return Path(_fetched(exact, _mlflow().get_tracking_uri()))


@lru_cache(maxsize=16)
def _fetched(exact: str, _address: str) -> str:
    files = version_at(exact).files
    with _asking(f"cannot fetch {exact}"):
        download = _mlflow().artifacts.download_artifacts
        is_here = urlsplit(files).scheme in ("", "file")
        return str(download(artifact_uri=files, dst_path=None if is_here else _subfolder(_copies().name, files)))


@lru_cache(maxsize=1)
def _copies() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="wbc-models-")


def _subfolder(folder: str, files: str) -> str:
    path = Path(folder, re.sub(r"\W+", "-", files))
    path.mkdir(exist_ok=True)
    return str(path)


def begin_run(name: str, title: str, params: Mapping[str, str] = {}) -> str:  # never changed
    """Begin a run of the experiment `name`, which is made where there is none; its id.

    Figures logged to it are seen on MLflow's page while it goes on. Whoever begins it ends it.
    """
    with _asking(f"cannot begin a run of {name!r}") as client:
        experiment = _experiment(client, name)
        run_id = str(client.create_run(experiment, run_name=title).info.run_id)
    log_params(run_id, params)
    return run_id


def log_params(run_id: str, params: Mapping[str, str]) -> None:
    """Add to a run by which settings it is done."""
    with _asking("cannot keep settings") as client:
        for key, value in params.items():
            client.log_param(run_id, _word(key), value[:500])


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, _place_beside_database()))
    except Exception:  # another run has made it meanwhile
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _place_beside_database() -> str | None:
    """Where files go that MLflow keeps itself: beside its SQLite file, whatever folder a command is run in."""
    address = str(_mlflow().get_tracking_uri())
    if not address.startswith("sqlite:///"):
        return None  # a server knows its own
    return (Path(address.removeprefix("sqlite:///")).absolute().parent / "mlartifacts").as_uri()


def log_figures(run_id: str, figures: Mapping[str, float], step: int = 0, model_id: str | None = None) -> None:
    """Add figures to a run, or to the model that came of it too; those that are not finite are left out."""
    log_curves(run_id, [(step, figures)], model_id)


def log_curves(run_id: str, rows: Sequence[tuple[int, Mapping[str, float]]], model_id: str | None = None) -> None:
    """`log_figures` of many steps, each with its number."""
    entities, now = _mlflow().entities, int(time.time() * 1000)
    points = [
        entities.Metric(_word(key), float(value), now, step, model_id=model_id, run_id=run_id)
        for step, figures in rows
        for key, value in figures.items()
        if math.isfinite(value)
    ]
    with _asking("cannot keep figures") as client:
        for start in range(0, len(points), 500):
            client.log_batch(run_id, metrics=points[start : start + 500])


def kept_steps(run_id: str, name: str) -> set[int]:
    """The steps at which a run has a figure."""
    with _asking("cannot read figures") as client:
        return {point.step for point in client.get_metric_history(run_id, _word(name))}


def keep_files(run_id: str, files: Sequence[Path], folder: str = "") -> None:
    """Add files to a run's artifacts: curves, pictures, tables."""
    with _asking("cannot keep files") as client:
        for path in files:
            client.log_artifact(run_id, str(path), folder or None)


def end_run(run_id: str, *, failed: bool = False) -> None:
    """End a run, well or badly."""
    with _asking("cannot end a run") as client:
        client.set_terminated(run_id, "FAILED" if failed else "FINISHED")


def give_up_run(run_id: str) -> None:
    """End a run badly, as far as MLflow still answers: whoever gives up has a reason of their own to tell."""
    with suppress(ModelError):
        end_run(run_id, failed=True)


def _word(key: str) -> str:
    """A name in the letters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", key)[:250]


def store(
    name: str, run_id: str, files: Sequence[Path], metrics: Mapping[str, float], tags: Mapping[str, str], page: str
) -> int:
    """Make files the next version of the registered model `name`, which MLflow's page describes so; its number.

    The version is made last, in one step, when all its files are there: until then, and where anything fails, there is
    none. Raises ModelError where MLflow fails.
    """
    with _asking(f"nothing was registered as {name!r}") as client:
        experiment = client.get_run(run_id).info.experiment_id
        model_id = client.create_logged_model(experiment, name, run_id, model_type="wbc").model_id
        try:
            _fill(client, model_id, run_id, files)
            log_figures(run_id, metrics, model_id=model_id)
            _check_whole(client, model_id, files)
            client.finalize_logged_model(model_id, "READY")
            return _publish(client, name, model_id, run_id, tags, page)
        except BaseException:
            with suppress(Exception):  # where the server is away what is left is no version, only a model that is none
                client.delete_logged_model(model_id)
            raise


def _fill(client: Any, model_id: str, run_id: str, files: Sequence[Path]) -> None:
    """Upload a model's files, and the description that MLflow looks for."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    with TemporaryDirectory() as folder:
        description = Model(run_id=run_id, model_id=model_id, flavors={"wbc": {"files": [file.name for file in files]}})
        description.save(f"{folder}/MLmodel")
        client.log_model_artifacts(model_id, folder)
    for file in files:
        client.log_model_artifact(model_id, str(file))


def _check_whole(client: Any, model_id: str, files: Sequence[Path]) -> None:
    """Raises ModelError unless MLflow has every file in its full length."""
    there = {file.path: file.file_size for file in client.list_logged_model_artifacts(model_id)}
    for file in files:
        size, came = file.stat().st_size, there.get(file.name)
        if came not in (size, None) or file.name not in there:
            raise ModelError(f"{file.name} arrived in MLflow with {came} of {size} bytes")


def _publish(client: Any, name: str, model_id: str, run_id: str, tags: Mapping[str, str], page: str) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model_id}"
    kept = {k: v[:5000] for k, v in tags.items() if v}
    made = client.create_model_version(name, source, run_id, tags=kept, model_id=model_id, description=page[:5000])
    # A server that went away after it had made a version was asked again, and has made another.
    for other in client.search_model_versions(f"name = '{name}'"):
        if other.source == source and other.version != made.version:
            client.delete_model_version(name, other.version)
    return int(made.version)


def name_version(name: str, alias: str, number: int | None) -> None:
    """Give a version an alias, which no other has any more; None takes it away."""
    with _asking(f"cannot set {alias!r} of {name!r}") as client:
        if number is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, str(number))


def tag_version(version: StoredVersion, tags: Mapping[str, str]) -> None:
    """Write tags on a version; a tag that it has is written over."""
    with _asking(f"cannot mark {version.reference}") as client:
        for key, value in tags.items():
            client.set_model_version_tag(version.name, str(version.number), key, value[:5000])
