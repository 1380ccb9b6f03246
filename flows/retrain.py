"""The retrain flow: both models learn from what is new; the gate says which of them count from now on."""

from pathlib import Path
from typing import cast

from prefect import flow, get_run_logger
from prefect.states import Completed

from flows.parameters import from_parameters
from flows.result import publish
from flows.training import challenge, gate, settle_order, trained_version
from flows.training_parameters import RetrainingParameters
from wbc import __version__
from wbc.evaluation.frozen import read_frozen
from wbc.evaluation.unseen import check_unseen
from wbc.training.orders import Settled


class NotRetrained(RuntimeError):
    """A model could not be trained; what failed is named."""


@flow(name="retrain", version=__version__, persist_result=False)
@from_parameters
def retrain(parameters: RetrainingParameters) -> list[str]:
    """Train the models anew on all that was learnt from before and what is new, register them, and let the gate decide.

    The references of the versions that came of it; none where fewer than `least_new` annotations are new. A model that
    fails does not cost the other. Raises NotRetrained, naming what failed, ValueError where no config is given.
    """
    orders = parameters.orders()
    if not orders:
        raise ValueError("neither the detector's config nor the classifier's is given: nothing to train")
    results, failures, learnt = [], [], []
    for order in orders:
        try:
            settled = settle_order(order)
            if settled.stores and settled.n_new < parameters.least_new:
                get_run_logger().info("%s: %d annotations are new: not trained", order.task, settled.n_new)
                continue
            if parameters.frozen is not None:
                check_unseen(settled, read_frozen(Path(parameters.frozen), Path(parameters.data)))
            trained, reference = trained_version(settled)
            results.append((trained, reference, _judged(reference, parameters)))
            learnt.append(settled)
        except Exception as error:  # whatever it is, it is this model's alone
            get_run_logger().error("%s: %s", order.task, error)
            failures.append(f"{order.task}: {error}")
    publish("retrain", results)
    if failures:
        raise NotRetrained("; ".join(failures))
    _mark(learnt)
    return _ending([reference for _, reference, _ in results])


def _judged(reference: str, parameters: RetrainingParameters) -> str:
    """What the gate decided of a version; without frozen slides it stays the challenger."""
    if parameters.frozen is None:
        challenge(reference)
        return "Challenger: no frozen slides are given for the gate."
    return gate(reference, Path(parameters.frozen), Path(parameters.data), parameters.device)


def _mark(learnt: list[Settled]) -> None:
    """Write down in the annotation stores what was learnt from; the next training waits for what comes after it."""
    for settled in learnt:
        for store, snapshot in settled.stores:
            store.mark_trained(snapshot)


def _ending(references: list[str]) -> list[str]:
    """What the flow returns, under a state of its own name where there was nothing to learn."""
    if references:
        return references
    message = "no annotations to learn from are new"
    return cast(list[str], Completed(name="NothingNew", message=message, data=references))
