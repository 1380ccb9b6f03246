"""Versions of the two models, `wbc-detector` and `wbc-classifier`: every fit is one, and one of them is the champion.

What a version is: a card, weights as safetensors and reference cells where there are some, never a pickle; the figures,
curves and pictures of its fit; the digest of what it has learnt from and the revision of the code; its parents.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wbc.models import tracking
from wbc.models.cards import ModelCard, ModelError, ModelRef, Task
from wbc.models.registry import CARD, REFERENCE_CELLS, WEIGHTS, locate, read_card
from wbc.models.tracking import StoredVersion
from wbc.models.version_page import describe

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "NAMES",
    "Fit",
    "StoredVersion",
    "bundled_of",
    "champion_or_bundled",
    "decision_of",
    "export_version",
    "import_model",
    "promote",
    "register",
    "rollback",
    "set_alias",
    "version_of",
    "versions",
]
CHAMPION, CHALLENGER = "champion", "challenger"
NAMES: Mapping[Task, str] = MappingProxyType({"detector": "wbc-detector", "classifier": "wbc-classifier"})
# Tags of a version. BEFORE is the reference of the champion whose place it took.
DIGEST, DATASET, REVISION, PARENTS, DECISION = "digest", "dataset", "code_revision", "parents", "decision"
BEFORE, PROMOTED_AT, ROLLED_BACK_AT = "champion_before", "promoted_at", "rolled_back_at"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a model came to be, as its version tells it.

    `metrics` are shown on MLflow's page beside those of the card; `files` are curves, pictures and tables;
    `dataset_digest` is of all that it has learnt from; `code_revision` and `parents` are the card's where they are left
    empty. `run_id` is the run of `tracking.begin_run` that the fit was followed in, which `register` then ends; without
    one the version gets a run of its own.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    dataset_digest: str = ""
    code_revision: str = ""
    parents: tuple[ModelRef, ...] = ()
    params: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""


def register(folder: Path, name: str, fit: Fit = Fit()) -> int:
    """Make the model in `folder` the next version of `name`, one of NAMES; its number. It has no alias yet.

    The version is there whole or not at all: it is made last, when its files are. A server that does not answer is
    asked again for a time (see `wbc.models.tracking`). Raises ModelError where the folder holds no model, one of
    another task, or where nothing could be registered.
    """
    card = read_card(str(folder))
    if NAMES[card.task] != name:
        raise ModelError(f"{folder} is a {card.task}: it can be a version of {NAMES[card.task]}, not of {name}")
    run_id = fit.run_id or tracking.begin_run(name, card.name, fit.params)
    try:
        if fit.run_id:
            tracking.log_params(run_id, fit.params)
        tracking.keep_files(run_id, fit.files)
        metrics = {**card.metrics, **fit.metrics}
        page = describe(card, metrics, fit.files, run_id)
        number = tracking.store(name, run_id, _files(folder, card), metrics, _tags(card, fit), page)
    except BaseException:
        tracking.give_up_run(run_id)
        raise
    tracking.end_run(run_id)
    return number


def _files(folder: Path, card: ModelCard) -> list[Path]:
    """What a model is made of; a checkpoint that lies beside it, a pickle, is no part of it."""
    names = (CARD, WEIGHTS, *([REFERENCE_CELLS] if card.reference_sha256 else []))
    return [folder / name for name in names]


def _tags(card: ModelCard, fit: Fit) -> dict[str, str]:
    parents = fit.parents or card.parents
    return {
        DIGEST: card.digest,
        DATASET: fit.dataset_digest or card.dataset,
        REVISION: fit.code_revision or card.code_revision,
        PARENTS: ", ".join(f"{parent.reference}@{parent.digest[:12]}" for parent in parents),
    }


def versions(name: str) -> list[StoredVersion]:
    """All versions of `name`, the newest first. Raises ModelError where the registry cannot be asked."""
    return tracking.stored_versions(name)


def version_of(reference: str) -> StoredVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` means now. Raises ModelError where none is."""
    return tracking.version_at(reference)


def set_alias(name: str, alias: str, number: int | None) -> None:
    """Give version `number` of `name` an alias, which no other version has any more; None takes it away."""
    tracking.name_version(name, alias, number)


def bundled_of(task: Task) -> str:
    """The model that comes with wbc, for a task."""
    return f"bundled:{task}"


def champion_or_bundled(task: Task) -> str:
    """The champion's version as a pinned reference; where there is no champion yet, the model that comes with wbc.

    Raises ModelError where the registry cannot be asked.
    """
    found = _champion(NAMES[task])
    return found.reference if found else bundled_of(task)


def _champion(name: str) -> StoredVersion | None:
    """The champion among the versions; None where there is none yet."""
    return next((version for version in versions(name) if CHAMPION in version.aliases), None)


def promote(reference: str) -> StoredVersion:
    """Make a version the champion, whoever it was before; the version that it is then.

    It keeps the name of the one before, so that `rollback` finds it. Whether it ought to be is what
    `wbc.training.promotion` decides. Raises ModelError where there is no such version.
    """
    version = version_of(reference)
    before = _champion(version.name)
    if before is not None and before.number == version.number:
        return version
    task = next(task for task, name in NAMES.items() if name == version.name)
    word = before.reference if before else bundled_of(task)
    tracking.tag_version(version, {BEFORE: word, PROMOTED_AT: _now()})
    set_alias(version.name, CHAMPION, version.number)
    if CHALLENGER in version.aliases:
        set_alias(version.name, CHALLENGER, None)
    return version_of(version.reference)


def rollback(name: str) -> StoredVersion:
    """Make the champion before this one the champion again; the version that it is.

    Where that was the model that comes with wbc, it becomes a version for it. Raises ModelError where there is no
    champion, or none was before it.
    """
    champion = _champion(name)
    if champion is None:
        raise ModelError(f"{name} has no champion: there is nothing to go back from")
    before = champion.tags.get(BEFORE, "")
    if not before:
        raise ModelError(f"{champion.reference} was the first champion: there is none to go back to")
    if not before.startswith("models:/"):
        before = f"models:/{name}/{import_model(before)}"
    target = version_of(before)
    set_alias(name, CHAMPION, target.number)
    tracking.tag_version(champion, {ROLLED_BACK_AT: _now()})
    return version_of(before)


def import_model(reference: str) -> int:
    """Make a bundled model, or one in a folder, a version of its task's name; its number.

    One that is a version already, by card and weights, is not made another.
    """
    card = read_card(reference)
    same = [version for version in versions(NAMES[card.task]) if version.tags.get(DIGEST) == card.digest]
    return same[0].number if same else register(locate(reference), NAMES[card.task])


def export_version(reference: str, folder: Path) -> ModelCard:
    """Copy a model to a folder, which then is a reference of its own; its card.

    Raises ModelError where there is no such model, ValueError where the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty")
    source = locate(reference)
    card = read_card(str(source))
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files(source, card):
        shutil.copyfile(path, folder / path.name)
    return read_card(str(folder))


def decision_of(version: StoredVersion) -> dict[str, Any]:
    """What the gate decided of a version, in short; empty where it was never asked."""
    values: dict[str, Any] = json.loads(version.tags.get(DECISION, "{}"))
    return values


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
