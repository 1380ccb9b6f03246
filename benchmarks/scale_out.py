"""Very many slides and workers, simulated: CPU and memory of flow and scheduler a slide, and when they are the limit.

The flow, Prefect's server and Dask are real, and so are tables and commits; a slide's fields are links to one small
file, which nobody opens: on the workers, reading a field and finding its cells are naps as long as those take, and what
comes back is as much as a field's cells make. Many threads in few worker processes stand for many machines. Each case
has a process of its own, which runs the flow on one slide twice before; its CPU is that of flow, client and scheduler.
"""

import hashlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from upath import UPath

from benchmarks.common import Claim, Report, Row, parser, peak_rss_mb, show, stub_detector
from benchmarks.many_slides import Watch
from wbc.counting.handover import DetectedChunk, IngestedField, ModelSeconds, ReadyField
from wbc.counting.job import Job
from wbc.storage.categorical import Categorical
from wbc.storage.detections import SlideDetections
from wbc.storage.pixels import StoredPixels
from wbc.storage.stamps import FieldStamp
from wbc.types import ChunkKey

BAR_CPU, BAR_MB = 0.05, 100.0
FIELD_PX = (1920, 2560)
SIMULATED = "WBC_BENCHMARK_SIMULATED"  # workers read from it what they are to stand for


@dataclass(frozen=True, slots=True)
class Simulated:
    """A site: `workers` threads that each take so many seconds to read a field and to find its `boxes` cells."""

    slides: int
    fields: int
    workers: int
    read_seconds: float
    model_seconds: float
    boxes: int


def link_slides(folder: Path, n_slides: int, n_fields: int) -> None:
    """Slides in `folder` whose fields are one file each: what nobody opens need not be there twice.

    One file for all would be too many links for ext4 from 650 slides of 100 fields on.
    """
    for number in range(n_slides):
        slide = folder / f"slide-{number:06d}"
        slide.mkdir(parents=True)
        first = slide / "field-000.jpg"
        first.write_bytes(b"no picture")
        for i in range(1, n_fields):
            os.link(first, slide / f"field-{i:03d}.jpg")


def ingest_chunk(paths: Sequence[UPath], key: ChunkKey, group: UPath) -> list[IngestedField]:
    """On a worker, in the place of `wbc.counting.worker.ingest_chunk`: a nap."""
    site = _site()
    time.sleep(site.read_seconds * len(key.indices))
    return [_ingested(path, key.slide_id, site) for path in paths]


def _ingested(path: UPath, slide_id: str, site: Simulated) -> IngestedField:
    sha256 = hashlib.sha256(f"{slide_id}/{path.name}".encode()).hexdigest()
    stored = StoredPixels(*FIELD_PX, sha256)
    return IngestedField(FieldStamp(path.name, 10, "0"), sha256, stored, decode_seconds=site.read_seconds)


def detect_chunk(fields: tuple[ReadyField, ...], job: Job) -> DetectedChunk:
    """On a worker, in the place of `wbc.counting.worker.detect_chunk`: a nap, and as many boxes as cells would make."""
    site = _site()
    time.sleep(site.model_seconds * len(fields))
    return DetectedChunk.concatenate([_detected(field, site) for field in fields])


def _detected(field: ReadyField, site: Simulated) -> DetectedChunk:
    n, rng = site.boxes, np.random.default_rng(field.key.field)
    low = rng.uniform(0, 1800, (n, 2)).astype(np.float32)
    scores = rng.uniform(0.05, 1.0, n).astype(np.float32)
    names, classes = Categorical.repeat(field.path.name, n), Categorical.repeat("rbc", n)
    nothing = np.zeros((n, 0), np.float16), np.full(n, np.nan, np.float32), Categorical.repeat("", n)
    boxes = SlideDetections(names, np.hstack([low, low + 70]), classes, scores, *nothing)
    seconds = (ModelSeconds(field.key.field, site.model_seconds, 0.0),)
    return DetectedChunk(boxes, None, precisions=frozenset(["float32"]), seconds=seconds)


def _site() -> Simulated:
    return Simulated(**json.loads(os.environ[SIMULATED]))


def run_site(folder: Path, site: Simulated) -> Row:
    """In a process of its own: the flow on the site's slides."""
    from benchmarks import scale_out
    from flows.count_slides import count_slides, listening
    from wbc.counting import slide as way

    way.ingest_chunk, way.detect_chunk = scale_out.ingest_chunk, scale_out.detect_chunk  # type: ignore[attr-defined]
    settings = folder / "cluster.toml"
    processes = max(1, site.workers // 32)
    settings.write_text(
        'class = "distributed.LocalCluster"\n[arguments]\nprocesses = true\ndashboard_address = "127.0.0.1:0"\n'
        f"n_workers = {processes}\nthreads_per_worker = {max(1, site.workers // processes)}\n"
    )

    def run(slides: str) -> tuple[float, float, Watch]:
        watch, began, cpu = Watch(), time.perf_counter(), _own_cpu()
        with listening(watch):
            report = count_slides(
                slides=str(folder / slides),
                out=str(folder / f"out-{slides}"),
                detector=str(folder / "stub"),
                classifier=None,
                um_per_px=0.1,
                device="cpu",
                settings=str(settings),
            )
        if {outcome.status for outcome in report.outcomes} != {"counted"}:
            raise RuntimeError(f"not every slide is counted: {report.outcomes[0]}")
        return time.perf_counter() - began, _own_cpu() - cpu, watch

    run("first")  # what a process does once, it does here
    _, start_up, _ = run("one")
    _, cpu, watch = run("all")
    wall = (watch.done[-1] - watch.done[0]) / max(1, site.slides - 1)
    bare = site.fields * (site.read_seconds + site.model_seconds) / site.workers
    return {
        **asdict(site),
        "bare s a slide": bare,
        "s a slide": wall,
        "fields/s": site.fields / wall,
        "busy": bare / wall,
        "flow and scheduler, CPU-s a slide": max(0.0, cpu - start_up) / site.slides,
        "peak MB": peak_rss_mb(),
    }


def _own_cpu() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime


def measure(sites: Sequence[Simulated]) -> Report:
    """All sites, one after the other; the claims are of the last, its memory beside the first's."""
    rows: list[Row] = []
    for site in sites:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            stub_detector(folder / "stub")
            for single in ("first", "one"):
                link_slides(folder / single, 1, site.fields)
            link_slides(folder / "all", site.slides, site.fields)
            os.environ["PREFECT_HOME"], os.environ[SIMULATED] = str(folder / "prefect"), json.dumps(asdict(site))
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                rows.append(process.submit(run_site, folder, site).result())
    few, many = rows[0], rows[-1]
    cpu = many["flow and scheduler, CPU-s a slide"]
    return Report(
        "Scale",
        [
            Claim(f"flow and scheduler, a slide of {many['fields']} fields", cpu, "CPU-s", at_most=BAR_CPU),
            Claim(
                f"memory at {many['slides']} slides over that at {few['slides']}",
                many["peak MB"] - few["peak MB"],
                "MB",
                at_most=BAR_MB,
            ),
            Claim("fields that one flow can serve", many["fields"] / max(cpu, 1e-9), "a second"),
        ],
        {"Sites": rows},
    )


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--slides", type=int, nargs="+", default=[100, 1000])
    command.add_argument("--fields", type=int, default=100)
    command.add_argument("--workers", type=int, nargs="+", default=[100], help="threads that stand for workers")
    command.add_argument("--read-seconds", type=float, default=0.03)
    command.add_argument("--model-seconds", type=float, default=0.4, help="a field's, as measured on such a worker")
    command.add_argument("--boxes", type=int, default=350, help="detections a field, from the lowest score on")
    chosen = command.parse_args()
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    first = Simulated(
        chosen.slides[0], chosen.fields, chosen.workers[0], chosen.read_seconds, chosen.model_seconds, chosen.boxes
    )
    sites = [replace(first, slides=n, workers=workers) for workers in chosen.workers for n in chosen.slides]
    show(measure(sites), as_json=chosen.json)


if __name__ == "__main__":
    main()
