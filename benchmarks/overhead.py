"""What counting costs beyond the models: CPU-seconds a field of the whole run minus the models alone on the same tiles.

The first run records every tensor that reaches the models; then whole runs and bare loops over these tensors, held in
memory, take turns. One executor thread, one torch thread, the slide's scale given.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from torch import nn
from upath import UPath

from benchmarks.common import Claim, Report, Row, cpu_of, long_slide, parser, show, stub_detector
from wbc.cells.classify import classify
from wbc.cells.detect import detect, rescale
from wbc.counting.record import occasion_of, rules_of
from wbc.counting.slide import Job, count_slide
from wbc.counting.tally import tally
from wbc.engine import EngineChoice
from wbc.models import registry
from wbc.models.engines import ready_detector
from wbc.models.registry import LoadedModel
from wbc.storage import images
from wbc.storage.counts import commit, read_evidence
from wbc.storage.pixels import create_group, read_pixels, write_pixels
from wbc.taxonomy import GENERIC, load_taxonomy
from wbc.types import FieldKey, Slide

BAR_CPU_SECONDS = 0.15
DEVICE = "cpu"


@dataclass(slots=True)
class Calls:
    """A module's calls in order: what went in and what came out."""

    module: nn.Module
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def replay(self) -> None:
        """Call the module again with every input, in a thread as a count does: another thread has other memory."""
        with ThreadPoolExecutor(1) as executor:
            executor.submit(self._replay).result()

    @torch.inference_mode()
    def _replay(self) -> None:
        for given in self.inputs:
            self.module(given)


class Recorded(nn.Module):
    """Stands for a module and answers its recorded calls, at no cost, so that what is around it can be timed alone."""

    def __init__(self, outputs: list[Any]) -> None:
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, _given: Any) -> Any:
        """The next recorded answer."""
        return next(self.outputs)


@contextmanager
def recording(module: nn.Module) -> Iterator[Calls]:
    """Within, the calls of `module` are kept."""
    calls = Calls(module)

    def keep(_module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        calls.inputs.append(given[0])
        calls.outputs.append(output)

    handle = module.register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def measure(slide: Slide, job: Job, rounds: int, import_seconds: float) -> Report:
    """The overhead a field, the median of `rounds`, and its parts."""
    n = len(slide.field_paths)

    def whole() -> None:
        with ThreadPoolExecutor(1) as executor:
            count_slide(slide, job, executor)

    loaded, load_seconds = cpu_of(lambda: models_of(job))
    with ExitStack() as recordings:
        models = [recordings.enter_context(recording(model.module)) for model in loaded]
        _, first = cpu_of(whole)
    if not models[0].inputs:
        raise RuntimeError("the count used another detector than the one that was recorded")
    wholes, bares = [], []
    for _ in range(rounds):
        wholes.append(cpu_of(whole)[1] / n)
        bares.append(sum(cpu_of(calls.replay)[1] for calls in models) / n)
    overhead = median(w - b for w, b in zip(wholes, bares, strict=True))
    beyond = overhead / median(bares)
    recorded = [replace(m, module=Recorded(c.outputs)) for m, c in zip(loaded, models, strict=True)]
    startup = {
        "imports": import_seconds,
        "models": load_seconds,
        "first run, beyond a later one": first - n * wholes[0],
    }
    return Report(
        "Cost beyond the models",
        [
            Claim(f"overhead of {n} fields", overhead, "CPU-s a field", at_most=BAR_CPU_SECONDS),
            Claim("the same, as a part of the models' time", beyond),
        ],
        {
            "Whole run and bare models": [
                {"round": i + 1, "whole": w, "models": b, "overhead": w - b}
                for i, (w, b) in enumerate(zip(wholes, bares, strict=True))
            ],
            "Step by step (with fresh memory for each step, so more in sum)": _parts(slide, job, recorded),
            "Start-up, CPU-s once": [{"part": k, "CPU-s": v} for k, v in startup.items()],
        },
    )


def models_of(job: Job) -> list[LoadedModel]:
    """The very models that a count of this process uses: its detector, and its classifier where it has one."""
    detector = ready_detector(job.detector, DEVICE, job.engine)
    return [detector] if job.classifier is None else [detector, registry.load(job.classifier, DEVICE)]


def _parts(slide: Slide, job: Job, models: list[LoadedModel]) -> list[Row]:
    """CPU-seconds a field of each step of a count by itself (the median field), the models answering from memory."""
    group = UPath(job.out / "parts.zarr")
    spent: dict[str, list[float]] = defaultdict(list)

    def timed(part: str, work: Callable[[], Any]) -> Any:
        result, seconds = cpu_of(work)
        spent[part].append(seconds)
        return result

    create_group(group, slide)
    scale = slide.um_per_px or models[0].card.um_per_px
    settings = job.settings
    for i, path in enumerate(slide.field_paths):
        key = FieldKey(slide.slide_id, i)
        content = timed("read", partial(images.field_content, path))
        timed("digest", partial(images.digest, content))
        pixels = timed("decode", partial(images.decode_field, path.name, content))
        stored = timed("store: write", partial(write_pixels, group, key, pixels))
        pixels = timed("store: read", partial(read_pixels, group, key, stored))
        timed("scale", partial(rescale, pixels, scale / models[0].card.um_per_px))
        look = partial(detect, [pixels], models[0], scale, settings.lowest_score, settings.tiles)
        (cells,) = timed("tile, tensors, merge", look)
        spent["tile, tensors, merge"][-1] -= spent["scale"][-1]
        if job.classifier is not None and GENERIC in models[0].card.classes:
            white = cells.boxes[cells.labels == models[0].card.classes.index(GENERIC) + 1]
            timed("crop", partial(classify, pixels, white, scale, models[1]))
    rows: list[Row] = [{"part": part, "CPU-s a field": median(seconds)} for part, seconds in spent.items()]
    n = len(slide.field_paths)
    _, tables_seconds = cpu_of(lambda: _write_tables(slide, job))
    return [*rows, {"part": "count and tables", "CPU-s a field": tables_seconds / n}]


def _write_tables(slide: Slide, job: Job) -> None:
    """Count the slide's cells again and commit them, from the detections of the last run."""
    _, evidence = read_evidence(job.out, slide.slide_id)
    result = tally(evidence, rules_of(job, evidence.origin.kinds), occasion_of(slide.source, job.run_id))
    commit(job.out, result.tables, result.row)


def main() -> None:
    """The command line."""
    import_seconds = time.process_time()
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, help="folder of labelled slides; rendered ones where it is not given")
    command.add_argument("--detector", help="default: a stub")
    command.add_argument("--classifier", help="default: none")
    command.add_argument("--engine", default="torch", choices=get_args(EngineChoice))
    command.add_argument("--fields", type=int, default=20)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--size", type=int, nargs=2, default=[1920, 2560], metavar=("HEIGHT", "WIDTH"))
    chosen = command.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = long_slide(folder, chosen.fields, chosen.data, *chosen.size)
        ref = registry.resolve(chosen.detector, "detector")[0] if chosen.detector else stub_detector(folder / "stub")
        classifier = registry.resolve(chosen.classifier, "classifier")[0] if chosen.classifier else None
        job = Job(UPath(folder / "out"), ref, classifier, load_taxonomy("blood"), device=DEVICE, force=True)
        job = replace(job, engine=chosen.engine)
        show(measure(slide, job, chosen.rounds, import_seconds), as_json=chosen.json)


if __name__ == "__main__":
    main()
