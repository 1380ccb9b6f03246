"""Many small slides through the `count-slides` flow with a stub detector: seconds a slide, memory, a second run's time.

Each number of slides has a process of its own, which runs the flow on one slide (start-up: imports, Prefect's private
server, a cluster), on all, then on both again. A slide's time is taken between the first and the last that is done, a
second run's beyond that over one slide. The scheduler lives in the process that runs the flow.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped]
from PIL import Image

from benchmarks.common import Claim, Report, Row, parser, peak_rss_mb, show, stub_detector
from wbc.counting.slide import SlideOutcome

BAR_SECONDS_A_SLIDE, BAR_MB, BAR_RESUME_SECONDS = 0.1, 100.0, 2.0
FIELDS_A_SLIDE, FIELD_PX, CELL_RADIUS_PX = 2, (120, 160), 17
UM_PER_PX = 0.2


def paint_slides(folder: Path, n_slides: int) -> Path:
    """`n_slides` slides of two small fields in `folder`, each field with a few dark discs at places of its own."""
    y, x = np.mgrid[: FIELD_PX[0], : FIELD_PX[1]]
    for number in range(n_slides):
        slide = folder / f"slide-{number:05d}"
        slide.mkdir(parents=True)
        for i in range(FIELDS_A_SLIDE):
            pixels = np.full((*FIELD_PX, 3), 235, np.uint8)
            rng = np.random.default_rng([number, i])
            for cy, cx in rng.uniform(CELL_RADIUS_PX, np.array(FIELD_PX) - CELL_RADIUS_PX, (3, 2)):
                pixels[(y - cy) ** 2 + (x - cx) ** 2 <= CELL_RADIUS_PX**2] = (120, 60, 90)
            Image.fromarray(pixels).save(slide / f"field-{i}.png")
    return folder


class Watch:
    """A listener that notes when slides are done, in seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.done: list[float] = []

    def slides_found(self, n_slides: int, n_fields: int) -> None:
        """Nothing to note."""

    def fields_done(self, n_fields: int, n_cells: int) -> None:
        """Nothing to note."""

    def slide_done(self, outcome: SlideOutcome) -> None:
        """One more."""
        self.done.append(time.perf_counter())


def run_flows(folder: Path, workers: int | None) -> Row:
    """In a process of its own: all runs, and the memory they leave behind. Raises RuntimeError for wrong counts."""
    began = time.perf_counter()
    from flows.count_slides import count_slides, listening

    def run(slides: str, status: str) -> tuple[float, Watch]:
        start, watch = time.perf_counter(), Watch()
        with listening(watch):
            report = count_slides(
                slides=str(folder / slides),
                out=str(folder / f"out-{slides}"),
                detector=str(folder / "stub"),
                classifier=None,
                um_per_px=UM_PER_PX,
                device="cpu",
                workers=workers,
            )
        if {outcome.status for outcome in report.outcomes} != {status}:
            raise RuntimeError(f"not every slide of {slides!r} is {status}")
        return time.perf_counter() - start, watch

    run("one", "counted")
    startup = time.perf_counter() - began
    whole, watch = run("all", "counted")
    n = len(watch.done)
    again = {slides: min(run(slides, "unchanged")[0] for _ in range(2)) for slides in ("one", "all")}
    beyond = again["all"] - again["one"]
    servers = [p.memory_info().rss / 1e6 for p in psutil.Process().children(recursive=True) if _is_server(p)]
    return {
        "slides": n,
        "start-up s": startup,
        "whole run s": whole,
        "s a slide": (watch.done[-1] - watch.done[0]) / (n - 1),
        "again, s per 100": 100 * beyond / (n - 1),
        "flow and scheduler, peak MB": peak_rss_mb(),
        "Prefect's server MB": sum(servers),
    }


def _is_server(process: psutil.Process) -> bool:
    return any("prefect.server" in part for part in process.cmdline())


def measure(sizes: Sequence[int], workers: int | None) -> Report:
    """All sizes, smallest first; memory is compared between the first and the last."""
    rows: list[Row] = []
    for n_slides in sizes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            stub_detector(folder / "stub")
            paint_slides(folder / "one", 1)
            paint_slides(folder / "all", n_slides)
            os.environ["PREFECT_HOME"] = str(folder / "prefect")
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                rows.append(process.submit(run_flows, folder, workers).result())
    few, many = rows[0], rows[-1]
    grown = many["flow and scheduler, peak MB"] - few["flow and scheduler, peak MB"]
    return Report(
        "Many slides",
        [
            Claim(
                f"a slide of two small fields, of {many['slides']}", many["s a slide"], "s", at_most=BAR_SECONDS_A_SLIDE
            ),
            Claim(f"memory at {many['slides']} slides over that at {few['slides']}", grown, "MB", at_most=BAR_MB),
            Claim("a second run, per 100 slides", many["again, s per 100"], "s", at_most=BAR_RESUME_SECONDS),
        ],
        {"Runs, wall time": rows},
    )


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--slides", type=int, nargs="+", default=[100, 1000])
    command.add_argument("--workers", type=int, help="worker processes; default: the machine's size")
    chosen = command.parse_args()
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    show(measure(chosen.slides, chosen.workers), as_json=chosen.json)


if __name__ == "__main__":
    main()
