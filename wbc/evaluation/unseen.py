"""Frozen slides judge a model only where it has not learnt from them."""

from collections.abc import Iterator

from wbc.datasets.crops import Crops, cut_named_cells
from wbc.datasets.splits import Prints, check_apart, joined_prints, prints_of, prints_of_cells
from wbc.evaluation.frozen import Frozen, FrozenSet, is_named_white
from wbc.models.cards import Task
from wbc.taxonomy import Taxonomy
from wbc.training.orders import Settled
from wbc.training.sides import data_prints


def check_unseen(settled: Settled, frozen: Frozen) -> None:
    """Raises ValueError, naming pairs, where what an order learns from shows the same as frozen slides, or is of them.

    A detector's pictures are compared, a classifier's cells.
    """
    learnt = data_prints(settled.order.task, settled.plan.data, settled.order.data)
    check_apart({"data": learnt, "frozen slides": _frozen_prints(settled.order.task, frozen)})


def _frozen_prints(task: Task, frozen: Frozen) -> Prints:
    if task == "classifier":
        return joined_prints(prints_of_cells(crops) for one in frozen.sets for crops in _cells(one, frozen.taxonomy))
    return joined_prints(prints_of([picture for picture, _ in one.pictures]) for one in frozen.sets)


def _cells(one: FrozenSet, taxonomy: Taxonomy) -> Iterator[Crops]:
    if one.crops is not None:
        yield one.crops
        return
    for picture, um_per_px in one.pictures:
        yield cut_named_cells([picture], lambda label: is_named_white(label, taxonomy), um_per_px)
