"""The models on a GPU: whether they find what a CPU finds, where the time goes, what other ways cost, how busy it is.

Parts run one after another in the order asked for, else what matters most first; each row is printed as JSON as soon as
it is known, each part's rows once more as a table. A part that fails prints why, and the next one runs; one that would
take the next one's time leaves steps out. With `--device cpu` all of it runs that needs no GPU. Nothing of Prefect or
Dask is needed.
"""

import faulthandler
import json
import os
import sys
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

from benchmarks.gpu_fields import Rendering, render

BEGAN = time.monotonic()
GRACE_SECONDS = 15.0
CORES = os.cpu_count() or 1
# What each part needs at least, in seconds with 16 cores and a large GPU: with less left it is not begun. Of
# "correctness" it is one slide, most of it the CPU's float32.
NEEDS = {
    "correctness": 20.0,
    "stages": 8.0,
    "kernels": 5.0,
    "variants": 5.0,
    "copies": 2.0,
    "decoding": 2.0,
    "busy": 5.0,
    "processes": 18.0,
    "compiled": 20.0,
}


def main() -> None:
    """The command line."""
    chosen = _arguments()
    if chosen.device != "cpu":  # a hung kernel must not hold the machine
        faulthandler.dump_traceback_later(chosen.seconds + GRACE_SECONDS, exit=True)
    with ProcessPoolExecutor(chosen.renderers, get_context("fork")) as pool:  # before torch has threads
        rendering = render(pool, chosen.large, chosen.small)
        _run(chosen, rendering)
    faulthandler.cancel_dump_traceback_later()


def _run(chosen: Namespace, rendering: Rendering) -> None:
    import torch

    from benchmarks.gpu_subject import subject_of

    subject = subject_of(chosen.data, chosen.device, rendering)
    _print({"part": "machine", **subject.machine(), "ready after s": _seconds()})
    every = _parts()
    for name, following in zip_longest(chosen.parts, chosen.parts[1:]):
        if chosen.seconds - _seconds() < NEEDS[name]:
            _print({"part": name, "skipped": f"{chosen.seconds - _seconds():.0f} s are left"})
            continue
        # A worker with a GPU gives its models one thread; the CPU that is compared with gets all cores.
        torch.set_num_threads(CORES if name == "correctness" else 1)
        subject.ends, subject.left_out = BEGAN + chosen.seconds - NEEDS.get(following, 0.0), 0
        _finish(name, every[name](subject))
        _print({"part": f"{name}: end", "s": _seconds(), "steps left out": subject.left_out})
    _print({"part": "end", "s": _seconds()})


def _parts() -> dict[str, Callable[..., Iterator[dict[str, object]]]]:
    from benchmarks import gpu_agreement, gpu_busy, gpu_copies, gpu_stages, gpu_variants

    return {
        "correctness": gpu_agreement.rows,
        "stages": gpu_stages.rows,
        "kernels": gpu_stages.kernels,
        "variants": gpu_variants.rows,
        "copies": gpu_copies.copies,
        "decoding": gpu_copies.decoding,
        "busy": gpu_busy.rows,
        "processes": gpu_busy.processes,
        "compiled": gpu_variants.compiled,
    }


def _finish(name: str, part: Iterator[dict[str, object]]) -> None:
    """Run one part, printing its rows as they come, then as a table for each kind of row."""
    from benchmarks.common import markdown

    tables: dict[tuple[str, ...], list[dict[str, object]]] = {}
    try:
        for row in part:
            _print({"part": name, **row})
            tables.setdefault(tuple(row), []).append(row)
    except Exception:
        traceback.print_exc(file=sys.stdout)
    for rows in tables.values():
        print(f"\n## {name}\n\n{markdown(rows)}\n", flush=True)


def _print(row: dict[str, object]) -> None:
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def _seconds() -> float:
    return round(time.monotonic() - BEGAN, 2)


def _arguments() -> Namespace:
    command = ArgumentParser(description=__doc__)
    command.add_argument("--data", type=Path, required=True, help="folder of labelled slides")
    command.add_argument("--device", default="cuda")
    command.add_argument("--seconds", type=float, default=60.0, help="no part begins that would end later")
    command.add_argument("--parts", nargs="+", default=list(NEEDS), choices=list(NEEDS))
    command.add_argument("--large", type=int, default=4, help="different rendered fields of 2560x1920 px")
    command.add_argument("--small", type=int, default=8, help="different rendered fields of 640x480 px")
    command.add_argument("--renderers", type=int, default=8, help="processes that render them")
    return command.parse_args()


if __name__ == "__main__":
    main()
