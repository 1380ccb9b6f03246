"""Trainings that are asked for, and what becomes of them: a model in a folder of its own, with all that tells of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from upath import UPath

from wbc.configs import read_toml
from wbc.datasets.annotation_store import AnnotationStore, Snapshot
from wbc.models.cards import ModelCard, Task
from wbc.models.registry import read_card, resolve_device
from wbc.models.versions import CHAMPION, NAMES, champion_or_bundled, version_of
from wbc.storage.atomic import write_whole
from wbc.training import classifier, detector
from wbc.training.classifier import ClassifierConfig
from wbc.training.detector import DetectorConfig
from wbc.training.detector_data import StoreData
from wbc.training.pictures import CURVES_PICTURE, PREDICTIONS_PICTURE, draw_curves, draw_predictions
from wbc.training.progress import CURVES, read_curves

Plan = DetectorConfig | ClassifierConfig
CONFIGS: Mapping[Task, type[Any]] = {"detector": DetectorConfig, "classifier": ClassifierConfig}
ORDER = "order.json"  # is written last: a folder with one is done


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a training may take: `steps`, `minutes`, each as its config says where it is 0."""

    steps: int = 0
    minutes: float = 0.0


@dataclass(frozen=True, slots=True)
class Order:
    """A training that is asked for: a model for `task` by `config` on the data sets below `data`.

    `snapshot` is the digest of what its annotation store held; "" means what it holds now. Its folder is one of `runs`;
    `processes` train together, 0 means one for each GPU.
    """

    task: Task
    config: Path
    data: Path
    runs: Path
    snapshot: str = ""
    budget: Budget = Budget()
    device: str = "auto"
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """An order whose every word is pinned: its plan, the digest of all that changes the model, and its folder."""

    order: Order
    plan: Plan
    folder: Path

    @property
    def stores(self) -> list[tuple[AnnotationStore, Snapshot]]:
        """The annotation stores that it learns from, each as it was when the order was settled."""
        blocks = [spec for spec in self.plan.data if isinstance(spec, StoreData)]
        places = [(spec.annotation_store(self.order.data), spec.snapshot) for spec in blocks]
        return [(store, store.snapshot_of(digest)) for store, digest in places]

    @property
    def n_new(self) -> int:
        """How many annotations its stores hold that the last training had not."""
        return sum(store.count_since(store.last_trained()) for store, _ in self.stores)

    @property
    def facts(self) -> dict[str, str]:
        """What a version tells of its training."""
        snapshots = ", ".join(snapshot.digest for _, snapshot in self.stores)
        loop = self.plan.loop
        return {
            "config": str(self.order.config),
            "start": self.plan.start or ("ImageNet" if self.plan.imagenet else ""),
            "snapshot": snapshots,
            "steps": str(loop.steps),
            "seconds": f"{loop.seconds:g}",
            "device": self.order.device,
        }


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that a training has made: its folder, its card, and the files that show how it came to be."""

    task: Task
    folder: Path
    card: ModelCard
    files: tuple[Path, ...]
    facts: Mapping[str, str]


def settle(order: Order) -> Settled:
    """Pin what an order says: the champion to its version, each annotation store to a snapshot, `auto` to a device.

    Raises ValueError, naming the file, for a config or snapshot that cannot be used.
    """
    plan: Plan = read_toml(order.config, CONFIGS[order.task])
    blocks: Any = {name: tuple(_pinned(s, order) for s in getattr(plan, name)) for name in ("data", "measure", "watch")}
    seconds = 60 * order.budget.minutes or plan.loop.seconds
    # Orders are carried out by flows, and a worker that is forked beside a flow's threads ends with an error.
    loop = replace(plan.loop, steps=order.budget.steps or plan.loop.steps, seconds=seconds, data_workers=0)
    plan = replace(plan, **blocks, loop=loop, start=pinned_start(plan.start, order.task))
    order = replace(order, device=resolve_device(order.device))
    content = json.dumps([order.task, str(order.data), asdict(plan)], sort_keys=True, default=str)
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return Settled(order, plan, order.runs / f"{NAMES[order.task]}-{digest}")


def _pinned(spec: Any, order: Order) -> Any:
    if not isinstance(spec, StoreData):
        return spec
    return replace(
        spec, snapshot=spec.snapshot or order.snapshot or spec.annotation_store(order.data).snapshot().digest
    )


def pinned_start(start: str, task: Task) -> str:
    """A reference to start from as the version that it means now; without a champion, the model that comes with wbc."""
    if start == f"models:/{NAMES[task]}@{CHAMPION}":
        return champion_or_bundled(task)
    return version_of(start).reference if start.startswith("models:/") else start


def fulfil(settled: Settled) -> Trained:
    """Train what an order asks for; what is trained already is not trained again, and what was stopped goes on.

    Raises what the recipes raise.
    """
    order, folder = settled.order, settled.folder
    if not (folder / ORDER).is_file():
        recipe: Any = {"detector": detector, "classifier": classifier}[order.task].train_as_planned
        recipe(settled.plan, order.config, order.data, folder, order.device, order.processes)
        draw_curves(read_curves(folder), folder / CURVES_PICTURE)
        draw_predictions(settled.plan, order.data, folder, order.device)
        write_whole(UPath(folder / ORDER), json.dumps(settled.facts, indent=1).encode())
    files = tuple(folder / name for name in (CURVES, CURVES_PICTURE, PREDICTIONS_PICTURE, ORDER))
    return Trained(order.task, folder, read_card(str(folder)), files, settled.facts)
