"""The way of one slide, from files to tables, on any concurrent.futures.Executor.

Two stages: `ingest_slide` reads the fields into the slide's Zarr group, `count_ingested` turns that into tables. Both
fan chunks of fields out to the executor, which gets addresses and never pixels. `count_slide` is one after the other.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, wait
from typing import Literal

from upath import UPath

from wbc.counting.handover import CountedChunk, CountedSlide, Ingested, Scale, SlideFailure, SlideOutcome, SlideStatus
from wbc.counting.job import CountSettings, Job, WorkSettings, is_count_of
from wbc.counting.record import commit_count, commit_failure, digests, keep_stamps
from wbc.counting.scales import scales_of
from wbc.counting.worker import count_chunk, ingest_chunk
from wbc.storage.atomic import remove_folder
from wbc.storage.counts import committed_count_id, read_slide_row
from wbc.storage.pixels import create_group
from wbc.storage.stamps import known_digests
from wbc.storage.tables import SlideRow
from wbc.types import ChunkKey, Slide

__all__ = [
    "CountSettings",
    "Ingested",
    "Job",
    "Progress",
    "SlideOutcome",
    "WorkSettings",
    "chunks",
    "count_ingested",
    "count_slide",
    "ingest_slide",
    "is_counted",
    "record_failure",
    "unchanged",
]

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # fields done, cells found


def count_slide(slide: Slide, job: Job, executor: Executor, progress: Progress | None = None) -> SlideOutcome:
    """Both stages of one slide.

    Raises what the executor, a model or OUT raise; a bad field is an entry in the tables.
    """
    return count_ingested(ingest_slide(slide, job, executor), job, executor, progress)


def is_counted(slide: Slide, job: Job) -> bool:
    """Whether the slide's committed count is the one that `job` would make. Opens no field."""
    if job.force or job.verify:
        return False
    known = known_digests(job.out, slide)
    return known is not None and _stands(slide, known, job)


def _stands(slide: Slide, digests_by_name: Mapping[str, str], job: Job) -> bool:
    return is_count_of(committed_count_id(job.out, slide.slide_id), slide, digests_by_name, job)


def unchanged(slide: Slide, out: UPath, seconds: float = 0.0) -> SlideOutcome:
    """The outcome of a slide whose committed count stands: it failed then, it fails now.

    Raises FileNotFoundError where it has none.
    """
    return _outcome(read_slide_row(out, slide.slide_id), "unchanged", seconds)


def chunks(slide: Slide, chunk_fields: int) -> list[ChunkKey]:
    """The slide's fields in chunks of at most `chunk_fields`; none of a slide without fields."""
    indices = tuple(range(len(slide.field_paths)))
    return ChunkKey(slide.slide_id, indices).cut(chunk_fields) if indices else []


def ingest_slide(slide: Slide, job: Job, executor: Executor) -> Ingested:
    """Stage 1: read, digest and store every field of a slide; `done` where that shows its count to stand already."""
    began = time.monotonic()
    group = job.pixels_group(slide.slide_id)
    create_group(group, slide)
    futures = [executor.submit(ingest_chunk, slide, key, group) for key in chunks(slide, job.work.chunk_fields)]
    wait(futures)  # also where one failed: a retry must not meet the others' writing
    fields = tuple(f for future in futures for f in future.result())
    done = not job.force and _stands(slide, digests(fields), job)
    if done:
        _clean_up(slide, job)
        keep_stamps(slide, fields, job)
    return Ingested(slide, fields, done, time.monotonic() - began)


def count_ingested(ingested: Ingested, job: Job, executor: Executor, progress: Progress | None = None) -> SlideOutcome:
    """Stage 2: detect, classify, count and commit a slide; its pixels go unless the job keeps them."""
    slide, began = ingested.slide, time.monotonic()
    if ingested.done:
        return unchanged(slide, job.out, ingested.seconds)
    scales = scales_of(ingested, job, executor)
    cells = _cells(ingested, scales, job, executor, progress)
    row = commit_count(CountedSlide(ingested, scales, cells, began), job)
    _clean_up(slide, job)
    return _outcome(row, "counted", row.seconds.total)


def _outcome(row: SlideRow, status: Literal["counted", "unchanged"], seconds: float) -> SlideOutcome:
    became: SlideStatus = "failed" if row.reason is not None else status
    return SlideOutcome(row.slide_id, became, row.n_fields, row.n_cells, row.failed_fields, seconds, row.reason or "")


def _clean_up(slide: Slide, job: Job) -> None:
    """Remove the slide's pixels unless they are kept; where that fails it is logged, and the next run sweeps them."""
    if job.keep_pixels:
        return
    try:
        remove_folder(job.pixels_group(slide.slide_id))
    except OSError as error:
        logger.warning("%s: its pixels stay until the next run: %s", slide.slide_id, error)


def record_failure(slide: Slide, job: Job, reason: str) -> None:
    """Commit that a slide could not be counted, for `reason`, as `commit_failure` says."""
    commit_failure(SlideFailure(slide, reason), job)


def _cells(
    ingested: Ingested, scales: dict[int, Scale], job: Job, executor: Executor, progress: Progress | None
) -> CountedChunk:
    """The cells of all fields to count, in their order; duplicates are done as soon as they are known."""
    if progress and ingested.duplicates:
        progress(len(ingested.duplicates), 0)
    if not scales:
        return CountedChunk.empty()
    keys = ChunkKey(ingested.slide.slide_id, tuple(scales)).cut(job.work.chunk_fields)
    parts = [tuple(ingested.ready(i, scales[i].um_per_px) for i in key.indices) for key in keys]
    futures = [executor.submit(count_chunk, part, job) for part in parts]
    counted = []
    try:
        for part, future in zip(parts, futures, strict=True):
            counted.append(future.result())
            if progress:
                progress(len(part), len(counted[-1]))
    finally:
        wait(futures)
    return CountedChunk.concatenate(counted)
