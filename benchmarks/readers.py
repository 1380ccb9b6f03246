"""Readers beside a slide that is counted again without pause: none fails, none lacks the slide, none sees two counts.

Half of the readers are pandas on the folder `slides`, half are `read_count`, which looks for the files of one count.
"""

import itertools
import tempfile
import threading
from argparse import Namespace
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from upath import UPath

from benchmarks.common import Claim, Report, parser, show, stub_detector
from benchmarks.count_run import run_count
from benchmarks.small_slides import UM_PER_PX, base_fields, write_slide
from wbc.counting.parameters import CountParameters
from wbc.counting.recount import Change, recount_slides
from wbc.storage.counts import read_count
from wbc.taxonomy import load_taxonomy

SLIDE, TAXONOMIES = "s1", ("marrow_icsh", "blood")


def recount_without_pause(out: UPath, done: threading.Event) -> int:
    """Count the slide by two taxonomies in turns until it is enough; how often."""
    changes, n = itertools.cycle([Change(load_taxonomy(name)) for name in TAXONOMIES]), 0
    while not done.is_set():
        n += len(recount_slides(out, [SLIDE], next(changes)))
    return n


def read(out: UPath, number: int) -> str:
    """How one reader fared: `whole`, or what is wrong with what it read."""
    try:
        if number % 2:
            rows = pd.read_parquet(f"{out.path}/slides")
            return "whole" if rows["slide_id"].tolist() == [SLIDE] else "lacks the slide"
        found = read_count(out, SLIDE)
        return "whole" if len(found.cells) == found.row.n_cells else "of two counts"
    except Exception as error:  # whatever it is, a reader would see it
        return f"{type(error).__name__}: {error}"


def measure(options: Namespace) -> Report:
    """How the readers fared."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as recounting:
        slides, out, done = Path(folder) / "slides", UPath(folder) / "out", threading.Event()
        write_slide(slides / SLIDE, base_fields(None, 2, 1), np.random.default_rng(1))
        detector = stub_detector(Path(folder) / "detector", 0.65).reference
        run_count(CountParameters(str(slides), str(out), detector, None, um_per_px=UM_PER_PX, device="cpu"))
        loop = recounting.submit(recount_without_pause, out, done)
        try:
            ends = Counter(read(out, number) for number in range(options.reads))
        finally:
            done.set()
        n_counts = loop.result()
    claims = [
        Claim("reads", ends.total()),
        Claim("counts meanwhile", n_counts),
        Claim("reads that failed or lacked something", ends.total() - ends["whole"], at_most=0),
    ]
    return Report("Readers beside a recount", claims, {"Ends": [{"end": e, "reads": n} for e, n in ends.items()]})


def main() -> None:
    """Read as the command line says, and print how it ended."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--reads", type=int, default=10_000)
    options = arguments.parse_args()
    show(measure(options), as_json=options.json)


if __name__ == "__main__":
    main()
