"""The train-classifier flow: from a config and data sets to a version of wbc-classifier."""

from prefect import flow

from flows.parameters import from_parameters
from flows.result import publish
from flows.training import settle_order, trained_version
from flows.training_parameters import TrainingParameters
from wbc import __version__


@flow(name="train-classifier", version=__version__, persist_result=False)
@from_parameters
def train_classifier(parameters: TrainingParameters) -> str:
    """Train a classifier by a config and make it a version of wbc-classifier; the version's reference.

    It counts for nobody yet: what it is worth is for `wbc evaluate` and the gate to say. A run that was cut off goes on
    from its last checkpoint when it is asked for again. Raises ValueError for a config or data that cannot be used.
    """
    trained, reference = trained_version(settle_order(parameters.order("classifier")))
    publish("train-classifier", [(trained, reference, "")])
    return reference
