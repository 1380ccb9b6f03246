"""The way of one slide, from files to tables, on any concurrent.futures.Executor.

Two stages: `ingest_slide` reads the fields into the slide's Zarr group, `count_ingested` turns that into tables. Both
fan chunks of fields out to the executor, which gets addresses and never pixels. `count_slide` is one after the other.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from dataclasses import replace

from upath import UPath

from wbc.counting.handover import DetectedChunk, DetectedSlide, Ingested, Scale, SlideFailure, SlideOutcome, outcome_of
from wbc.counting.job import CountSettings, Job, WorkSettings
from wbc.counting.record import commit_count, commit_failure, digests, keep_stamps
from wbc.counting.recount import recount_fitting
from wbc.counting.scales import red_cells_um, scales_of
from wbc.counting.standing import is_counted, stands, unchanged
from wbc.counting.trust import needs_whole_look
from wbc.counting.worker import detect_chunk, ingest_chunk
from wbc.storage.atomic import remove_folder
from wbc.storage.counts import change_source, read_source
from wbc.storage.pixels import create_group
from wbc.types import ChunkKey, Slide, cut

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
    "stands",
    "unchanged",
]

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]  # fields done, cells found


def count_slide(slide: Slide, job: Job, executor: Executor, progress: Progress | None = None) -> SlideOutcome:
    """Both stages of one slide.

    Raises what the executor, a model or OUT raise; a bad field is an entry in the tables.
    """
    return count_ingested(ingest_slide(slide, job, executor), job, executor, progress)


def chunks(slide: Slide, chunk_fields: int) -> list[ChunkKey]:
    """The slide's fields in chunks of at most `chunk_fields`; none of a slide without fields."""
    indices = tuple(range(len(slide.field_paths)))
    return ChunkKey(slide.slide_id, indices).cut(chunk_fields) if indices else []


def _paths_of(slide: Slide, chunk: ChunkKey) -> Sequence[UPath]:
    return slide.field_paths[chunk.indices[0] : chunk.indices[-1] + 1]  # the indices of `chunks` have no gaps


def ingest_slide(slide: Slide, job: Job, executor: Executor) -> Ingested:
    """Stage 1: read, digest and store every field of a slide; `done` where that shows its count to stand already."""
    began = time.monotonic()
    group = job.pixels_group(slide.slide_id)
    create_group(group, slide)
    parts = [(_paths_of(slide, key), key) for key in chunks(slide, job.work.read_at_once)]
    futures = [executor.submit(ingest_chunk, paths, key, group) for paths, key in parts]
    wait(futures)  # also where one failed: a retry must not meet the others' writing
    fields = tuple(f for future in futures for f in future.result())
    done = not job.force and stands(slide, digests(fields), job)
    if done:
        _clean_up(slide, job)
        keep_stamps(slide, fields, job)
        if read_source(job.out, slide.slide_id) != slide.source:
            change_source(job.out, slide.slide_id, slide.source)
    return Ingested(slide, fields, done, time.monotonic() - began)


def count_ingested(ingested: Ingested, job: Job, executor: Executor, progress: Progress | None = None) -> SlideOutcome:
    """Stage 2: detect, classify, count and commit a slide; its pixels go unless the job keeps them.

    Where the detections that stand turn out to be those of its fields, they are counted and no model runs.
    """
    slide, began = ingested.slide, time.monotonic()
    if ingested.done:
        return unchanged(slide, job.out, ingested.seconds)
    outcome = None if job.force else recount_fitting(slide, digests(ingested.fields), job)
    if outcome is not None:
        keep_stamps(slide, ingested.fields, job)
        if progress:
            progress(outcome.n_fields - len(outcome.failed_fields), outcome.n_cells)
    else:
        scales = scales_of(ingested, job, executor)
        chunk = _detections(ingested, scales, job, executor, progress)
        chunk = replace(chunk, red_cells_um=red_cells_um(ingested, scales, chunk.red_cells_um, job, executor))
        row = commit_count(DetectedSlide(ingested, scales, chunk, began), job)
        outcome = outcome_of(row, "counted", row.seconds.total)
    _clean_up(slide, job)
    return outcome


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


def _detections(
    ingested: Ingested, scales: dict[int, Scale], job: Job, executor: Executor, progress: Progress | None
) -> DetectedChunk:
    """What the models say of all fields to count, in their order; duplicates are done as soon as they are known."""
    if progress and ingested.duplicates:
        progress(len(ingested.duplicates), 0)
    if not scales:
        return DetectedChunk.concatenate([])
    is_whole = needs_whole_look(ingested, scales, job, executor)
    fields = tuple(ingested.ready(i, s.um_per_px, is_whole=is_whole) for i, s in scales.items())
    largest_px = max(field.pixels.height * field.pixels.width for field in fields)
    parts = cut(fields, job.work.fields_at_once(largest_px))
    futures = [executor.submit(detect_chunk, part, job) for part in parts]
    detected = []
    try:
        for part, future in zip(parts, futures, strict=True):
            detected.append(future.result())
            if progress:
                progress(len(part), detected[-1].n_cells(job.settings.min_score))
    finally:
        wait(futures)
    return DetectedChunk.concatenate(detected)
