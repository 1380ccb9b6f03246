"""A worker's peak memory on a short and on a long slide: it must not grow with the slide."""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from upath import UPath

from benchmarks.common import Claim, Report, Row, long_slide, parser, peak_rss_mb, show, stub_detector
from wbc.counting.slide import Job, count_slide
from wbc.models import registry
from wbc.models.registry import ModelRef
from wbc.taxonomy import load_taxonomy
from wbc.types import Slide

BAR_RATIO = 1.10


def measure(slides: list[Slide], folder: Path, detector: ModelRef, classifier: ModelRef | None) -> Report:
    """Each slide counted by a worker process of its own."""
    rows: list[Row] = []
    for slide in slides:
        job = Job(UPath(folder / "out"), detector, classifier, load_taxonomy("blood"), device="cpu")
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as worker:
            idle = worker.submit(peak_rss_mb).result()
            outcome = count_slide(slide, job, worker)
            peak = worker.submit(peak_rss_mb).result()
        rows.append({"fields": len(slide.field_paths), "cells": outcome.n_cells, "idle MB": idle, "peak MB": peak})
    ratio = rows[-1]["peak MB"] / rows[0]["peak MB"]
    what = f"a worker's peak, {rows[-1]['fields']} fields to {rows[0]['fields']}"
    return Report("Memory of a worker", [Claim(what, ratio, at_most=BAR_RATIO)], {"Peak resident memory": rows})


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, help="folder of labelled slides; rendered ones where it is not given")
    command.add_argument("--detector", help="default: a stub")
    command.add_argument("--classifier", help="default: none")
    command.add_argument("--fields", type=int, nargs=2, default=[20, 200], metavar=("FEW", "MANY"))
    command.add_argument("--size", type=int, nargs=2, default=[1920, 2560], metavar=("HEIGHT", "WIDTH"))
    chosen = command.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slides = []
        for n_fields in chosen.fields:
            (folder / str(n_fields)).mkdir()
            slides.append(long_slide(folder / str(n_fields), n_fields, chosen.data, *chosen.size))
        ref = registry.resolve(chosen.detector, "detector")[0] if chosen.detector else stub_detector(folder / "stub")
        classifier = registry.resolve(chosen.classifier, "classifier")[0] if chosen.classifier else None
        show(measure(slides, folder, ref, classifier), as_json=chosen.json)


if __name__ == "__main__":
    main()
