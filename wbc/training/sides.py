"""The sides of a training: what it learns from, watches and is measured on show no source twice.

A detector's are told apart by their pictures, a classifier's by their cells (`wbc.datasets.splits`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from wbc.datasets.splits import Prints, check_apart, joined_prints, prints_of, prints_of_cells
from wbc.models.cards import Task
from wbc.training.classifier_data import CropData, read_crops
from wbc.training.detector_data import BoxData, StoreData, read_boxes

DataSets = Sequence[BoxData | StoreData] | Sequence[CropData]


class Sides(Protocol):
    """What a training's plan says of its sides."""

    @property
    def data(self) -> DataSets: ...
    @property
    def watch(self) -> DataSets: ...
    @property
    def measure(self) -> DataSets: ...


def check_sides(task: Task, plan: Sides, root: Path) -> None:
    """Raises ValueError, naming pairs, where two sides of a plan show the same source. Data sets are below `root`."""
    sides = {"data": plan.data, "watch": plan.watch, "measure": plan.measure}
    given = {name: specs for name, specs in sides.items() if specs}
    if len(given) > 1:
        check_apart({name: data_prints(task, specs, root) for name, specs in given.items()})


def data_prints(task: Task, specs: DataSets, root: Path) -> Prints:
    """What tells the pictures of a detector's data sets apart, or the cells of a classifier's."""
    if task == "classifier":
        return joined_prints(prints_of_cells(read_crops(cast(CropData, spec), root)) for spec in specs)
    return joined_prints(prints_of(read_boxes(cast(BoxData | StoreData, spec), root)) for spec in specs)
