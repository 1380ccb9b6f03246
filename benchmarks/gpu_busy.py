"""How busy a GPU is: fields read into Zarr by threads, as a worker reads them, and counted as a worker counts them."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from upath import UPath

from benchmarks.gpu_fields import UM_PER_PX, Rendering
from benchmarks.gpu_subject import Subject, subject_of
from wbc.counting.handover import ReadyField
from wbc.counting.job import Job, WorkSettings
from wbc.counting.worker import detect_chunk, ingest_chunk
from wbc.models import registry
from wbc.storage.pixels import create_group
from wbc.storage.slides import discover
from wbc.taxonomy import load_taxonomy
from wbc.types import ChunkKey, Slide, cut

SAMPLE_SECONDS = 0.03
# Producers' threads, threads that count, fields of a call, most Mpx of a forward pass.
LOADS = (
    (4, 1, 2, 1.1),  # as a processor's worker has it
    (1, 1, 8, 13.2),
    (2, 1, 8, 13.2),
    (4, 1, 8, 13.2),
    (8, 1, 8, 13.2),
    (8, 2, 8, 13.2),
    (8, 4, 4, 6.6),
)
N_FIELDS, N_ON_CPU = 48, 4
Load = tuple[int, int, int, int, float]
# Workers, and of each what a load is.
ON_CPU: Load = (1, 4, 1, 2, 1.1)
WORKERS: tuple[Load, ...] = (
    (1, 4, 1, 8, 13.2),
    (1, 4, 2, 8, 13.2),
    (1, 4, 3, 8, 13.2),
    (2, 4, 1, 8, 13.2),
    (4, 2, 1, 8, 13.2),
    (4, 2, 2, 8, 13.2),
    (4, 3, 3, 8, 13.2),
    (8, 1, 1, 8, 13.2),
    (8, 1, 2, 8, 13.2),
    (8, 2, 2, 8, 13.2),
    (12, 1, 1, 8, 13.2),
)
N_OF_A_WORKER = 48
ANSWER_SECONDS = 120.0


@dataclass
class Usage:
    """What NVML said of the GPU, in percent of the time that a kernel ran."""

    percents: list[float] = field(default_factory=list)


@contextmanager
def used(subject: Subject) -> Iterator[Usage]:
    """Within, the GPU is asked how busy it is, again and again."""
    usage, over = Usage(), threading.Event()

    def ask() -> None:
        while not over.wait(SAMPLE_SECONDS):
            usage.percents.append(float(torch.cuda.utilization()))

    thread = threading.Thread(target=ask)
    if subject.is_gpu:
        thread.start()
    try:
        yield usage
    finally:
        over.set()
        if thread.ident is not None:
            thread.join()


def rows(subject: Subject) -> Iterator[dict[str, object]]:
    """Fields a second of a whole count's reading and modelling, by threads; how long each step held its thread."""
    is_gpu = subject.is_gpu
    n = N_FIELDS if is_gpu else N_ON_CPU
    with tempfile.TemporaryDirectory(dir=_in_memory()) as name:
        slide = _slide(Path(name) / "slide", subject.jpegs["large"], n)
        job = _job(Path(name) / "out", subject)
        stored = _ingested(slide, job, 8)
        detect_chunk(stored[:2], job)
        for batch_px in (1_100_000, 13_200_000) if is_gpu else (1_100_000,):
            own = replace(job, work=WorkSettings(batch_px=batch_px))
            detect_chunk(stored[:8], own)
            with used(subject) as usage:
                began = time.perf_counter()
                chunk = detect_chunk(stored, own)
                seconds = time.perf_counter() - began
            yield {
                "stored fields alone": n,
                "batch Mpx": batch_px / 1e6,
                "fields/s": n / seconds,
                "detect s a field": mean(s.detect for s in chunk.seconds),
                "classify s a field": mean(s.classify for s in chunk.seconds),
                **_busy(subject, n / seconds, usage),
            }
        for load in subject.in_time(LOADS if is_gpu else LOADS[:1]):
            with used(subject) as usage:
                row = _loaded(slide, job, load)
            yield {**row, **_busy(subject, row["fields/s"], usage)}


def _loaded(slide: Slide, job: Job, load: tuple[int, int, int, float]) -> dict[str, float]:
    producers, models, at_once, mega_px = load
    job = replace(job, work=WorkSettings(chunk_fields=at_once, batch_px=int(mega_px * 1e6)))
    n = len(slide.field_paths)
    create_group(job.pixels_group(slide.slide_id), slide)
    chunks = [ChunkKey(slide.slide_id, part) for part in cut(tuple(range(n)), at_once)]
    with ThreadPoolExecutor(producers) as readers, ThreadPoolExecutor(models) as counters:
        began = time.perf_counter()
        reading = [readers.submit(_read, slide, key, job) for key in chunks]
        counting = [counters.submit(detect_chunk, done.result(), job) for done in as_completed(reading)]
        read = time.perf_counter() - began
        failed = sum(len(c.result().failures) for c in counting)
        seconds = time.perf_counter() - began
    return {
        "producers": producers,
        "model threads": models,
        "fields a call": at_once,
        "batch Mpx": mega_px,
        "fields/s": n / seconds,
        "read after s": read,
        "all after s": seconds,
        "failed": failed,
    }


def _busy(subject: Subject, fields_a_second: float, usage: Usage) -> dict[str, object]:
    """How busy the device was, by the time of a field's kernels alone, and as NVML has it; 0 where nothing is known."""
    by_kernels = fields_a_second * subject.device_ms.get("large", 0.0) / 10
    return {"kernels %": by_kernels, "NVML %": mean(usage.percents or [0.0]), "NVML samples": len(usage.percents)}


def _in_memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def _slide(folder: Path, jpegs: list[bytes], n: int) -> Slide:
    """A slide of `n` files, some pictures in turns: what is read and counted here is not told from doubles."""
    folder.mkdir()
    for i in range(n):
        (folder / f"field-{i:04d}.jpg").write_bytes(jpegs[i % len(jpegs)])
    return _found(folder)


def _found(folder: Path) -> Slide:
    return replace(discover(UPath(folder))[0], um_per_px=UM_PER_PX)


def _job(out: Path, subject: Subject) -> Job:
    detector, classifier = (
        registry.resolve(f"bundled:{task}", task)[0]  # type: ignore[arg-type]
        for task in ("detector", "classifier")
    )
    return Job(UPath(out), detector, classifier, load_taxonomy("blood"), device=str(subject.device), engine="torch")


def _ingested(slide: Slide, job: Job, threads: int) -> tuple[ReadyField, ...]:
    create_group(job.pixels_group(slide.slide_id), slide)
    keys = [ChunkKey(slide.slide_id, (i,)) for i in range(len(slide.field_paths))]
    with ThreadPoolExecutor(threads) as pool:
        return tuple(ready for part in pool.map(lambda key: _read(slide, key, job), keys) for ready in part)


def _read(slide: Slide, key: ChunkKey, job: Job) -> tuple[ReadyField, ...]:
    """A chunk's fields in the slide's Zarr group, ready to count. Raises RuntimeError where one cannot be read."""
    paths = [slide.field_paths[i] for i in key.indices]
    read = ingest_chunk(paths, key, job.pixels_group(slide.slide_id))
    ready = []
    for path, own, one in zip(paths, key.fields(), read, strict=True):
        if one.pixels is None:
            raise RuntimeError(f"{path}: {one.failure}")
        ready.append(ReadyField(own, path.parent, path.name, one.sha256, one.pixels, slide.um_per_px))
    return tuple(ready)


def processes(subject: Subject) -> Iterator[dict[str, object]]:
    """Fields a second of several workers on one device, each of which reads fields into Zarr and counts them."""
    context = get_context("spawn")
    loads = WORKERS if subject.is_gpu else (ON_CPU,)
    most = max(load[0] for load in loads)
    with tempfile.TemporaryDirectory(dir=_in_memory()) as name:
        pairs = [context.Pipe() for _ in range(most)]
        n_fields = N_OF_A_WORKER if subject.is_gpu else N_ON_CPU
        running = []
        for i, (_, end) in enumerate(pairs):
            folder = Path(name) / f"worker-{i}"
            folder.mkdir()
            _slide(folder / "slide", subject.jpegs["large"], n_fields)
            work = (str(subject.device), subject.data, folder, end)
            running.append(context.Process(target=_take_part, args=work, daemon=True))
        for process in running:
            process.start()
        ours = [own for own, _ in pairs]
        ready = time.perf_counter()
        for own in ours:
            _answer(own)
        yield {"workers": most, "ready after s": time.perf_counter() - ready}
        for load in subject.in_time(loads):
            yield _together(subject, ours[: load[0]], load)
        for own in ours:
            own.send(None)
        for process in running:
            process.join()


def _together(subject: Subject, workers: list[Any], load: Load) -> dict[str, object]:
    """All of them begin at once; the rate of all is of the time until the last has ended."""
    n, producers, models, at_once, mega_px = load
    with used(subject) as usage:
        began = time.perf_counter()
        for own in workers:
            own.send((producers, models, at_once, mega_px))
        told = [_answer(own) for own in workers]
        seconds = time.perf_counter() - began
    rate = sum(t["fields"] for t in told) / seconds
    return {
        "workers": n,
        "producers": producers,
        "model threads": models,
        "fields a call": at_once,
        "batch Mpx": mega_px,
        "fields/s": rate,
        "first and last after s": f"{min(t['seconds'] for t in told):.2f} {max(t['seconds'] for t in told):.2f}",
        "CPU-ms a field": 1e3 * sum(t["cpu"] for t in told) / sum(t["fields"] for t in told),
        **_busy(subject, rate, usage),
    }


def _answer(own: Any) -> dict[str, float]:
    """What a worker says. Raises RuntimeError where it is silent for too long or has failed."""
    if not own.poll(ANSWER_SECONDS):
        raise RuntimeError("a worker does not answer")
    told: dict[str, float] = own.recv()
    return told


def _take_part(device: str, data: Path, folder: Path, end: Any) -> None:
    """One worker with a slide of its own: its models warm, it takes loads until there is none."""
    torch.set_num_threads(1)
    subject = subject_of(data, device, Rendering([], []))
    slide = _found(folder / "slide")
    job = _job(folder / "out", subject)
    warm = _ingested(slide, job, 2)
    for mega_px in {load[4] for load in WORKERS} if subject.is_gpu else ():
        detect_chunk(warm[:16], replace(job, work=WorkSettings(batch_px=int(mega_px * 1e6))))
    end.send({})
    while (load := end.recv()) is not None:
        began, cpu = time.perf_counter(), time.process_time()
        _loaded(slide, job, load)
        end.send(
            {
                "fields": len(slide.field_paths),
                "seconds": time.perf_counter() - began,
                "cpu": time.process_time() - cpu,
            }
        )
