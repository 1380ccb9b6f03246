"""What a count found of a slide, or why it failed, becomes the slide's tables."""

import time
from datetime import UTC, datetime
from typing import Any

from wbc import __version__
from wbc.counting.handover import CountedChunk, CountedSlide, IngestedField, SlideFailure
from wbc.counting.job import COUNTING_VERSION, Job, count_id, taxonomy_digest
from wbc.counting.scales import scale_flags, summary
from wbc.differential import differential_of
from wbc.models.registry import ModelRef
from wbc.storage import tables
from wbc.storage.counts import commit
from wbc.storage.stamps import FieldRecord, write_stamps
from wbc.storage.tables import Seconds, SlideRow
from wbc.types import Differential, Slide


def commit_count(counted: CountedSlide, job: Job) -> SlideRow:
    """Commit a slide's cells and what follows from them, and keep the stamps of its fields."""
    slide, began = counted.ingested.slide, time.monotonic()
    result = differential_of(counted.cells.cell_types, job.taxonomy, len(counted.failed_fields))
    cells, scale = _cells_table(slide, counted.cells), summary(list(counted.scales.values()))
    row = _row(
        slide,
        job,
        result,
        flags=(*result.flags, *_flags(counted)),
        count_id=count_id(slide, digests(counted.fields), job, counted.precision),
        failed_fields=counted.failed_fields,
        um_per_px=scale.um_per_px,
        scale_from=scale.source,
        seconds=_seconds(counted, began),
        precision=counted.precision,
        reason=counted.reason,
        duplicate_fields=counted.duplicate_fields,
    )
    keep_stamps(slide, counted.fields, job)
    return commit(job.out, cells, tables.differentials_table(slide.slide_id, result), row)


def commit_failure(failure: SlideFailure, job: Job) -> None:
    """Commit that a slide could not be counted: no cells, and the flag `slide_failed`.

    An older count of other content goes to the history: it must not pass for this run's. The next run counts again.
    """
    slide, result = failure.slide, differential_of([], job.taxonomy)
    row = _row(
        slide,
        job,
        result,
        flags=(*result.flags, "slide_failed"),
        count_id=None,
        failed_fields=(),
        reason=failure.reason,
    )
    keep_stamps(slide, (), job)
    cells = _cells_table(slide, CountedChunk.empty())
    commit(job.out, cells, tables.differentials_table(slide.slide_id, result), row)


def keep_stamps(slide: Slide, fields: tuple[IngestedField, ...], job: Job) -> None:
    """Keep what was learnt of the slide's files, which spares the next run opening them."""
    records = {f.stamp.name: FieldRecord(f.stamp.size, f.stamp.modified, f.sha256) for f in fields}
    write_stamps(job.out, slide, records)


def digests(fields: tuple[IngestedField, ...]) -> dict[str, str]:
    """The digests of a slide's fields by file name; "" of those that could not be read."""
    return {f.stamp.name: f.sha256 for f in fields}


def _row(slide: Slide, job: Job, result: Differential, **columns: Any) -> SlideRow:
    """A slide's row: `columns` of its own, and those that job and differential tell."""
    values: dict[str, Any] = {"um_per_px": None, "scale_from": None, "seconds": Seconds()} | columns
    return SlideRow(
        slide_id=slide.slide_id,
        counted_at=datetime.now(UTC),
        n_fields=len(slide.field_paths),
        n_fields_failed=len(values["failed_fields"]),
        n_cells=result.n_cells,
        n_differential=result.n_differential,
        n_unidentified=result.n_unidentified,
        me_ratio=result.me_ratio,
        me_low=result.me_low,
        me_high=result.me_high,
        nrbc_per_100_wbc=result.nrbc_per_100_wbc,
        detector=_model_words(job.detector),
        classifier=_model_words(job.classifier) if job.classifier else None,
        taxonomy=job.taxonomy.name,
        wbc_version=__version__,
        min_score=job.settings.min_score,
        taxonomy_digest=taxonomy_digest(job.taxonomy),
        counting_version=COUNTING_VERSION,
        **values,
    )


def _flags(counted: CountedSlide) -> tuple[str, ...]:
    """The flags that the differential does not know of."""
    failed = () if counted.reason is None else ("slide_failed",)
    duplicates = ("duplicate_fields",) if counted.duplicate_fields else ()
    return (*failed, *scale_flags(counted.scales), *duplicates)


def _model_words(model: ModelRef) -> str:
    return f"{model.reference}@{model.digest[:12]}"


def _cells_table(slide: Slide, cells: CountedChunk) -> Any:
    names = [slide.field_paths[i].name for i in cells.fields]
    return tables.cells_table(slide.slide_id, names, cells.boxes, cells.cell_types, cells.scores, cells.type_scores)


def _seconds(counted: CountedSlide, began: float) -> Seconds:
    fields, now = counted.ingested.fields, time.monotonic()
    return Seconds(
        decode=sum(f.decode_seconds for f in fields),
        store=sum(f.store_seconds for f in fields),
        detect=sum(s.detect for s in counted.cells.seconds),
        classify=sum(s.classify for s in counted.cells.seconds),
        write=now - began,
        total=counted.ingested.seconds + now - counted.began,
    )
