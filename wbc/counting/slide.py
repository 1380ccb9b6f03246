"""The way of one slide, from files to tables, on any concurrent.futures.Executor.

Two stages: `ingest_slide` reads the fields into the slide's Zarr group, `count_ingested` turns that into tables. Both
fan chunks of fields out to the executor, which gets addresses and never pixels. `count_slide` is one after the other.
"""

import time
from collections.abc import Callable
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from upath import UPath

from wbc import __version__
from wbc.counting.job import CountSettings, Job, count_id
from wbc.counting.worker import CountedChunk, IngestedField, count_chunk, ingest_chunk, look_for_scale
from wbc.differential import differential_of
from wbc.storage import results, tables
from wbc.storage.pixels import create_group, remove_group
from wbc.storage.stamps import FieldRecord, known_digests, write_stamps
from wbc.storage.tables import FailedField, Seconds, SlideRow
from wbc.types import ChunkKey, ScaleFrom, Slide

__all__ = [
    "CountSettings",
    "Ingested",
    "Job",
    "Progress",
    "SlideOutcome",
    "chunks",
    "count_ingested",
    "count_slide",
    "ingest_slide",
    "is_counted",
    "record_failure",
    "remove_leftovers",
    "unchanged",
]

Progress = Callable[[int, int], None]  # fields done, cells found


@dataclass(frozen=True, slots=True)
class Ingested:
    """A slide whose fields are in its Zarr group, ready to count; or, `done`, one whose count stands already."""

    slide: Slide
    fields: tuple[IngestedField, ...]
    count_id: str
    done: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class SlideOutcome:
    """What became of a slide: counted now, unchanged since it was counted, or failed as a whole for `reason`."""

    slide_id: str
    status: Literal["counted", "unchanged", "failed"]
    n_fields: int
    n_cells: int
    failed_fields: tuple[FailedField, ...]
    seconds: float
    reason: str = ""


def count_slide(slide: Slide, job: Job, executor: Executor, progress: Progress | None = None) -> SlideOutcome:
    """Both stages of one slide.

    Raises what the executor, a model or OUT raise; a bad field is an entry in the tables.
    """
    return count_ingested(ingest_slide(slide, job, executor), job, executor, progress)


def remove_leftovers(out: UPath) -> None:
    """Remove what a killed run left in OUT: pixels that were not to be kept, and files half-written."""
    remove_group(out / ".wbc" / "pixels")
    results.remove_temporaries(out)


def is_counted(slide: Slide, job: Job) -> bool:
    """Whether the slide's committed count is the one that `job` would make. Opens no field."""
    if job.force or job.verify:
        return False
    known = known_digests(job.out, slide)
    return known is not None and tables.committed_count_id(job.out, slide.slide_id) == count_id(slide, known, job)


def unchanged(slide: Slide, out: UPath, seconds: float = 0.0) -> SlideOutcome:
    """The outcome of a slide whose committed count stands. Raises FileNotFoundError where it has none."""
    row = tables.read_slide_row(out, slide.slide_id)
    return SlideOutcome(slide.slide_id, "unchanged", row.n_fields, row.n_cells, row.failed_fields, seconds)


def chunks(slide: Slide, chunk_fields: int) -> list[ChunkKey]:
    """The slide's fields in ranges of at most `chunk_fields`."""
    n = len(slide.field_paths)
    return [ChunkKey(slide.slide_id, i, min(n, i + chunk_fields)) for i in range(0, n, chunk_fields)]


def ingest_slide(slide: Slide, job: Job, executor: Executor) -> Ingested:
    """Stage 1: read, digest and store every field of a slide; `done` where that shows its count to stand already."""
    began = time.monotonic()
    pixels = job.pixels(slide.slide_id)
    create_group(pixels, slide)
    futures = [executor.submit(ingest_chunk, slide, key, pixels) for key in chunks(slide, job.settings.chunk_fields)]
    wait(futures)  # also where one failed: a retry must not meet the others' writing
    fields = tuple(f for future in futures for f in future.result())
    own_id = count_id(slide, {f.stamp.name: f.sha256 for f in fields}, job)
    done = not job.force and tables.committed_count_id(job.out, slide.slide_id) == own_id
    if done:
        if not job.keep_pixels:
            remove_group(pixels)
        write_stamps(job.out, slide, _records(fields))
    return Ingested(slide, fields, own_id, done, time.monotonic() - began)


def count_ingested(ingested: Ingested, job: Job, executor: Executor, progress: Progress | None = None) -> SlideOutcome:
    """Stage 2: detect, classify, count and commit a slide; its pixels go unless the job keeps them."""
    slide, began = ingested.slide, time.monotonic()
    if ingested.done:
        return unchanged(slide, job.out, ingested.seconds)
    failed = tuple(FailedField(f.stamp.name, f.failure) for f in ingested.fields if f.failure is not None)
    if not slide.field_paths:
        failed = (FailedField("", "the folder holds no image"),)
    good = [i for i, f in enumerate(ingested.fields) if f.failure is None]
    um_per_px, scale_from = _scale(ingested, good, job, executor)
    pixels = job.pixels(slide.slide_id)
    size = job.settings.chunk_fields
    parts = [good[i : i + size] for i in range(0, len(good), size)]
    futures = [executor.submit(count_chunk, slide.slide_id, p, pixels, um_per_px, job) for p in parts]
    counted = []
    try:
        for part, future in zip(parts, futures, strict=True):
            counted.append(future.result())
            if progress:
                progress(len(part), len(counted[-1].scores))
    finally:
        wait(futures)
    row = _commit(ingested, counted, failed, um_per_px, scale_from, job, began)
    if not job.keep_pixels:
        remove_group(pixels)
    return SlideOutcome(slide.slide_id, "counted", row.n_fields, row.n_cells, failed, row.seconds.total)


def record_failure(slide: Slide, job: Job, reason: str) -> None:
    """Commit that a slide could not be counted, for `reason`: no cells, and the flag `slide_failed`.

    An older count of other content goes to the history: it must not pass for this run's. The next run counts again.
    """
    nothing = Ingested(slide, (), "failed", False, 0.0)
    _commit(nothing, [], (FailedField("", reason),), None, None, job, time.monotonic(), ("slide_failed",))


def _scale(ingested: Ingested, good: list[int], job: Job, executor: Executor) -> tuple[float | None, ScaleFrom | None]:
    """The slide's µm per px and where it came from; (None, None) where nothing tells it."""
    if ingested.slide.um_per_px is not None:
        return ingested.slide.um_per_px, "given"
    told = [f.um_per_px for f in ingested.fields if f.um_per_px is not None]
    if told:
        return float(np.median(told)), "metadata"
    if not good:
        return None, None
    spread = np.linspace(0, len(good) - 1, min(job.settings.look_fields, len(good))).round().astype(int)
    pixels = job.pixels(ingested.slide.slide_id)
    look = [good[i] for i in sorted(set(spread.tolist()))]
    estimate = executor.submit(look_for_scale, ingested.slide.slide_id, look, pixels, job).result()
    return estimate, "red_cells" if estimate is not None else None


def _commit(
    ingested: Ingested,
    counted: list[CountedChunk],
    failed: tuple[FailedField, ...],
    um_per_px: float | None,
    scale_from: ScaleFrom | None,
    job: Job,
    began: float,
    flags: tuple[str, ...] = (),
) -> SlideRow:
    slide_id = ingested.slide.slide_id
    names = [p.name for p in ingested.slide.field_paths]
    types = [kind for c in counted for kind in c.cell_types]
    result = differential_of(types, job.taxonomy, len(failed))
    t0 = time.monotonic()
    cells = tables.cells_table(
        slide_id,
        [names[i] for c in counted for i in c.fields],
        np.concatenate([np.zeros((0, 4), np.float32), *(c.boxes for c in counted)]),
        types,
        np.concatenate([np.zeros(0, np.float32), *(c.scores for c in counted)]),
        np.concatenate([np.zeros(0, np.float32), *(c.type_scores for c in counted)]),
    )
    if um_per_px is None and names:
        flags = (*flags, "scale_unknown")
    row = SlideRow(
        slide_id=slide_id,
        count_id=ingested.count_id,
        counted_at=datetime.now(UTC),
        n_fields=len(names),
        n_fields_failed=len(failed),
        failed_fields=failed,
        n_cells=result.n_cells,
        n_differential=result.n_differential,
        n_unidentified=result.n_unidentified,
        um_per_px=um_per_px,
        scale_from=scale_from,
        me_ratio=result.me_ratio,
        me_low=result.me_low,
        me_high=result.me_high,
        nrbc_per_100_wbc=result.nrbc_per_100_wbc,
        flags=result.flags + flags,
        detector=f"{job.detector.reference}@{job.detector.sha256[:12]}",
        classifier=f"{job.classifier.reference}@{job.classifier.sha256[:12]}" if job.classifier else None,
        taxonomy=job.taxonomy.name,
        wbc_version=__version__,
        seconds=Seconds(
            decode=sum(f.decode_seconds for f in ingested.fields),
            store=sum(f.store_seconds for f in ingested.fields),
            detect=sum(c.detect_seconds for c in counted),
            classify=sum(c.classify_seconds for c in counted),
            write=time.monotonic() - t0,
            total=ingested.seconds + time.monotonic() - began,
        ),
    )
    write_stamps(job.out, ingested.slide, _records(ingested.fields))
    tables.commit(job.out, cells, tables.differentials_table(slide_id, result), row)
    return row


def _records(fields: tuple[IngestedField, ...]) -> dict[str, FieldRecord]:
    return {f.stamp.name: FieldRecord(f.stamp.size, f.stamp.modified, f.sha256) for f in fields}
