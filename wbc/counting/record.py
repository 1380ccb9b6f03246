"""What the models said of a slide, or why it failed, becomes the slide's tables."""

import time
from dataclasses import replace
from datetime import UTC, datetime

from upath import UPath

from wbc.counting.correction import keep_reference, kept_certainty, kept_confusion
from wbc.counting.handover import DetectedSlide, IngestedField, ModelSeconds, Scale, SlideFailure
from wbc.counting.job import COUNTING_VERSION, Job, detections_id
from wbc.counting.tally import Occasion, Rules, tally
from wbc.models.registry import ModelRef
from wbc.storage.corrections import read_corrections
from wbc.storage.counts import commit
from wbc.storage.detections import Evidence, FieldRow, Kinds, Origin, SlideDetections
from wbc.storage.slides import fields_added
from wbc.storage.stamps import FieldRecord, write_stamps
from wbc.storage.tables import FieldSeconds, Seconds, SlideRow
from wbc.types import Precision, Slide

LATE = "came to the folder while the slide was counted; the next count reads it"


def commit_count(detected: DetectedSlide, job: Job) -> SlideRow:
    """Commit what the models said of a slide and what follows from it, and keep the stamps of its fields."""
    slide, began = detected.ingested.slide, time.monotonic()
    late = fields_added(slide)
    of_files = digests(detected.fields) | dict.fromkeys(late, "")
    made_from = detections_id(slide, of_files, job, detected.precision, detected.engine or "torch")
    origin = replace(_origin(job, made_from, detected.precision, detected.chunk.kinds), engine=detected.engine)
    said = read_corrections(job.out, slide.slide_id)
    fields = (*_field_rows(detected), *(FieldRow(name, None, "failed", FieldSeconds(), reason=LATE) for name in late))
    evidence = Evidence(slide.slide_id, fields, detected.chunk.detections, origin, said)
    result = tally(evidence, rules_of(job, origin.kinds), occasion_of(slide.source, job.run_id))
    keep_stamps(slide, detected.fields, job)
    row = replace(result.row, seconds=_seconds(detected, evidence.fields, began))
    return commit(job.out, result.tables, row, "counted from its fields anew: they, a model or a setting are others")


def commit_failure(failure: SlideFailure, job: Job) -> None:
    """Commit that a slide could not be counted: no cells, and the flag `slide_failed`.

    An older count of other content goes to the history: it must not pass for this run's. The next run counts again.
    """
    slide = failure.slide
    fields = tuple(FieldRow(name, None, "not_counted", FieldSeconds()) for name in slide.field_names)
    evidence = Evidence(slide.slide_id, fields, SlideDetections.empty(), _origin(job, None, None, None))
    result = tally(evidence, rules_of(job, None), occasion_of(slide.source, job.run_id))
    keep_stamps(slide, (), job)
    commit(job.out, result.tables, replace(result.row, reason=failure.reason), f"not counted: {failure.reason}")


def rules_of(job: Job, kinds: Kinds | None) -> Rules:
    """How a job counts cells that its classifier told into `kinds`, whose reference cells are in OUT from now on.

    Raises ModelError where these are not the classifier's, OSError where they cannot be written.
    """
    keep_reference(job.out, job.classifier, kinds)
    return with_misnaming(Rules(job.taxonomy, job.settings.min_score), job.out, kinds)


def with_misnaming(rules: Rules, out: UPath, kinds: Kinds | None) -> Rules:
    """The rules with what OUT's reference cells tell of misnaming. Raises ValueError where OUT lacks some."""
    usual, strict = (kept_confusion(out, kinds, rules.taxonomy, is_strange=strange) for strange in (False, True))
    sure = kept_certainty(out, kinds, rules.taxonomy)
    return replace(rules, confusion=usual, stranger_confusion=strict, stranger_certainty=sure)


def keep_stamps(slide: Slide, fields: tuple[IngestedField, ...], job: Job) -> None:
    """Keep what was learnt of the slide's files, which spares the next run opening them."""
    records = {f.stamp.name: FieldRecord(f.stamp.size, f.stamp.modified, f.sha256) for f in fields}
    write_stamps(job.out, slide, records)


def digests(fields: tuple[IngestedField, ...]) -> dict[str, str]:
    """The digests of a slide's fields by file name; "" of those that could not be read."""
    return {f.stamp.name: f.sha256 for f in fields}


def _origin(job: Job, made_from: str | None, precision: Precision | None, kinds: Kinds | None) -> Origin:
    return Origin(
        made_from,
        _model_words(job.detector),
        _model_words(job.classifier) if job.classifier else None,
        job.settings.lowest_score,
        COUNTING_VERSION,
        precision,
        kinds,
        job.settings.tiles.sought,
    )


def occasion_of(source: str | None, run_id: str) -> Occasion:
    """A count of the slide at `source`, made now."""
    return Occasion(run_id, datetime.now(UTC), Seconds(), source)


def _field_rows(detected: DetectedSlide) -> tuple[FieldRow, ...]:
    """What became of each field, in order."""
    spent, twins = {s.index: s for s in detected.chunk.seconds}, detected.ingested.duplicates
    unknown, nothing = Scale(None, None), ModelSeconds(0, 0.0, 0.0)
    rows, fields = [], detected.fields
    for i, field in enumerate(fields):
        row = _field_row(field, detected.scales.get(i, unknown), spent.get(i, nothing))
        if row.status == "counted" and i in twins:
            row = replace(row, status="duplicate", duplicate_of=fields[twins[i]].name)
        rows.append(replace(row, red_cell_um=detected.chunk.red_cells_um.get(i)))
    return tuple(rows)


def _field_row(field: IngestedField, scale: Scale, spent: ModelSeconds) -> FieldRow:
    return FieldRow(
        field.name,
        field.sha256 or None,
        "counted" if field.failure is None else "failed",
        FieldSeconds(field.decode_seconds, field.store_seconds, spent.detect, spent.classify),
        height_px=None if field.pixels is None else field.pixels.height,
        width_px=None if field.pixels is None else field.pixels.width,
        um_per_px=scale.um_per_px,
        scale_from=scale.source,
        reason=field.failure,
    )


def _model_words(model: ModelRef) -> str:
    return f"{model.reference}@{model.digest[:12]}"


def _seconds(detected: DetectedSlide, fields: tuple[FieldRow, ...], began: float) -> Seconds:
    now = time.monotonic()
    return Seconds(
        decode=sum(row.seconds.decode for row in fields),
        store=sum(row.seconds.store for row in fields),
        detect=sum(row.seconds.detect for row in fields),
        classify=sum(row.seconds.classify for row in fields),
        write=now - began,
        total=detected.ingested.seconds + now - detected.began,
    )
