"""The detector's whole way on fields of one size, by each engine, beside the bare model on the same pixels.

In turns, the least CPU-seconds a field: *bare* is the module on the tensors that reached it, in the same batches, from
memory; *detect* is scaling, tiles, module and merge of all fields together, *alone* of one after the other, as a count
does it on a processor; *whole* is a count of the slide's files with all tables. One torch thread.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from upath import UPath

from benchmarks.common import Claim, Report, Row, cpu_of, parser, show
from benchmarks.overhead import recording
from wbc.cells.detect import detect
from wbc.counting.slide import Job, count_slide
from wbc.engine import EngineChoice
from wbc.models import registry
from wbc.models.engines import ready_detector
from wbc.storage.images import read_field
from wbc.storage.slides import discover
from wbc.synth.smear import SmearSettings, render_slides
from wbc.taxonomy import load_taxonomy
from wbc.types import Slide

MOST_BEYOND, LEAST_OF_BARE = 0.05, 0.9


def ways_of(slide: Slide, job: Job) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; the model is loaded and warm."""
    fields = [read_field(path) for path in slide.field_paths]
    model, scale = ready_detector(job.detector, "cpu", job.engine), slide.um_per_px or 0.0

    def look_at(together: list[NDArray[np.uint8]]) -> None:
        detect(together, model, scale, job.settings.lowest_score, job.settings.tiles, job.work.batch_px)

    def look() -> None:
        look_at(fields)

    def look_alone() -> None:
        for pixels in fields:
            look_at([pixels])

    def count() -> None:
        with ThreadPoolExecutor(1) as executor:
            count_slide(slide, job, executor)

    with recording(model.module) as calls:
        look()
    count()
    return {"bare": calls.replay, "detect": in_a_thread(look), "alone": in_a_thread(look_alone), "whole": count}


def in_a_thread(work: Callable[[], None]) -> Callable[[], None]:
    """`work` in a new thread, where a count and the bare model run as well: it has memory of its own to come by."""

    def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            executor.submit(work).result()

    return run


def measure(slide: Slide, jobs: dict[EngineChoice, Job], rounds: int) -> Report:
    """The least of rounds in turns, and for each engine how much of the time the bare model has."""
    ways = {(engine, name): way for engine, job in jobs.items() for name, way in ways_of(slide, job).items()}
    spent: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            spent[way].append(cpu_of(run)[1] / len(slide.field_paths))
    rows: list[Row] = []
    claims = []
    for engine in jobs:
        least = {name: min(spent[way, name]) for way, name in ways if way == engine}
        rows.append({"engine": engine, **least})
        together, alone = (least["bare"] / least[name] for name in ("detect", "alone"))
        beyond = least["whole"] / least["bare"] - 1
        claims.append(Claim(f"{engine}: fields a second, of the bare model's", together, at_least=LEAST_OF_BARE))
        claims.append(Claim(f"{engine}: the same, one field after the other", alone, at_least=LEAST_OF_BARE))
        claims.append(Claim(f"{engine}: whole run beyond the bare model", beyond, at_most=MOST_BEYOND))
    return Report(f"{len(slide.field_paths)} fields", claims, {"CPU-seconds a field": rows})


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--fields", type=int, default=12)
    command.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    command.add_argument("--um-per-px", type=float, default=0.2)
    command.add_argument("--engines", nargs="+", default=["torch", "openvino"])
    command.add_argument("--rounds", type=int, default=3)
    chosen = command.parse_args()
    torch.set_num_threads(1)
    ref, _ = registry.resolve("bundled:detector", "detector")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = SmearSettings(height_px=chosen.size[0], width_px=chosen.size[1], um_per_px=chosen.um_per_px)
        render_slides(folder / "slides", 1, chosen.fields, 1, settings)
        slide = replace(discover(UPath(folder / "slides"))[0], um_per_px=chosen.um_per_px)
        job = Job(UPath(folder / "out"), ref, None, load_taxonomy("blood"), device="cpu", force=True)
        jobs = {engine: replace(job, out=UPath(folder / engine), engine=engine) for engine in chosen.engines}
        show(measure(slide, jobs, chosen.rounds), as_json=chosen.json)


if __name__ == "__main__":
    main()
