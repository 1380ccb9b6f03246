"""What it is worth to teach the body of a classifier, beside its last layer alone: 200 named cells of a laboratory.

The laboratory is `tecom_wbc`, which nothing was trained on: two thirds of its cells, of each kind, are named, as `wbc
adapt` with `--replay` would have them; the last third is what all ways are tested on, which no choice has seen.
"""

from pathlib import Path

import numpy as np

from benchmarks.common import Claim, Report, cpu_of, parser, show
from benchmarks.strangers import TECOM
from wbc.models import registry
from wbc.taxonomy import load_taxonomy
from wbc.training.body import MOST_LOST, Replay, as_taught, named_right, try_body
from wbc.training.classifier_data import read_crops
from wbc.training.last_layer import folds

THIRDS = 3


def measure(config: Path, data: Path, classifier: str, third: int, device: str) -> Report:
    """Right of the cells of one third, once the others have taught."""
    ref, _ = registry.resolve(classifier, "classifier")
    model, taxonomy, cells = registry.load(ref, device), load_taxonomy("blood"), read_crops(TECOM, data)
    tested = folds(cells.labels, THIRDS)[third]
    taught, others = cells.take(np.setdiff1d(np.arange(len(cells.labels)), tested)), cells.take(tested)
    trial, seconds = cpu_of(lambda: try_body(taught, model, ref, Replay(config, data)))
    body = registry.LoadedModel(trial.module, model.card, model.device)
    ways = {"as before": model, "a new last layer": as_taught(model, taught, taxonomy), "the body": body}
    rows = [
        {"way": way, "right": float(named_right(others, m, taxonomy).mean()), "held out": float(own.mean()), "old": old}
        for (way, m), own, old in zip(ways.items(), (trial.before, trial.layer, trial.body), trial.old, strict=True)
    ]
    claims = [
        Claim(
            "right of the old cells, with the body taught less before",
            trial.old[2] - trial.old[0],
            "",
            None,
            -MOST_LOST,
        ),
        Claim("a trial, CPU-seconds of its own process", seconds, "s"),
    ]
    named, held_out = len(taught.labels), len(trial.names)
    sizes = f"{named} cells named, {held_out} of these held out; {len(tested)} tested; {trial.n_old} old ones"
    return Report(f"The body of {classifier}, taught", claims, {sizes: rows}, [f"the body is taken: {trial.pays}"])


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--config", type=Path, default=Path("configs/classifier.toml"), help="what is replayed")
    command.add_argument("--data", type=Path, required=True, help="folder of the config's data sets and of tecom_wbc")
    command.add_argument("--classifier", default="bundled:classifier")
    command.add_argument("--third", type=int, choices=range(THIRDS), default=0, help="which third is tested")
    command.add_argument("--device", default="auto")
    chosen = command.parse_args()
    device = registry.resolve_device(chosen.device)
    show(measure(chosen.config, chosen.data, chosen.classifier, chosen.third, device), as_json=chosen.json)


if __name__ == "__main__":
    main()
