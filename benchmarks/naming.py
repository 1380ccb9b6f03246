"""What a name costs: the bundled classifier as it was trained, and ready as a count runs it, in turns on one thread.

Cells are those of a rendered field. CPU-milliseconds a cell of the network alone, and of all that names a cell; what
the two say of the same cells, as it is stored.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from benchmarks.common import Claim, Report, Row, parser, show
from wbc.cells.classify import Classified, classify, cut_crops, predict
from wbc.cells.prints import cell_prints
from wbc.models import registry
from wbc.models.engines import ready_classifier
from wbc.synth.smear import SmearSettings, render_field

BAR = 1.5


def measure(cells: int, rounds: int) -> Report:
    """The report on so many cells of one field."""
    settings = SmearSettings(white_cells_per_field=(cells, cells))
    pixels, boxes, labels = render_field(settings, np.random.default_rng(0))
    white = boxes[[label not in ("rbc", "platelet") for label in labels]]
    scale, ref = settings.um_per_px, registry.resolve("bundled:classifier", "classifier")[0]
    models = {"as trained": registry.load(ref, "cpu"), "ready": ready_classifier(ref, "cpu")}
    crops = cut_crops(pixels, white, scale, models["ready"].card)
    told: dict[str, Classified] = {}
    ways: dict[tuple[str, str], Callable[[], object]] = {("prints", ""): lambda: cell_prints(pixels, white, scale)}
    for name, model in models.items():
        told[name] = classify(pixels, white, scale, model)
        ways["network", name] = lambda m=model: predict(crops, m)  # type: ignore[misc]
        ways["crops, light, network, look", name] = lambda m=model: classify(pixels, white, scale, m)  # type: ignore[misc]
    spent: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            began = time.process_time()
            work()
            spent[way].append(1e3 * (time.process_time() - began) / len(white))
    rows: list[Row] = [
        {"what": what, "classifier": name, "least": min(ms), "median": median(ms)} for (what, name), ms in spent.items()
    ]
    ratio = min(spent["network", "as trained"]) / min(spent["network", "ready"])
    stored, ready = (told[name].probabilities.astype(np.float16) for name in models)
    claims = [
        Claim("the network as trained, in ratio to ready", ratio, at_least=BAR),
        Claim("cells whose likeliest class differs", float((stored.argmax(1) != ready.argmax(1)).sum()), at_most=0),
        Claim("stored probabilities that differ", float((stored != ready).mean())),
    ]
    return Report(f"Names of {len(white)} cells", claims, {"CPU-ms a cell": rows})


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--cells", type=int, default=24, help="white cells of the field")
    command.add_argument("--rounds", type=int, default=8)
    chosen = command.parse_args()
    torch.set_num_threads(1)
    show(measure(chosen.cells, chosen.rounds), as_json=chosen.json)


if __name__ == "__main__":
    main()
