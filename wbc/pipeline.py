"""The way of one slide, from files to tables, on any concurrent.futures.Executor.

Two stages: `ingest` reads the fields into the slide's Zarr group, `count` turns that into tables. Both fan chunks of
fields out to the executor, which gets addresses and never pixels. `count_slide` is one after the other.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from upath import UPath

from wbc import __version__, differential, store, tables
from wbc.classify import classify
from wbc.detect import TileSettings, detect
from wbc.registry import LoadedModel, ModelRef, load
from wbc.scale import estimate_um_per_px
from wbc.slides import FieldStamp, decode_field, digest, field_content, field_um_per_px, stamp
from wbc.tables import FailedField, FieldRecord, Seconds, SlideRow
from wbc.taxonomy import GENERIC, Taxonomy
from wbc.types import ChunkKey, FieldError, FieldKey, ScaleFrom, Slide

Progress = Callable[[int, int], None]  # fields done, cells found


@dataclass(frozen=True, slots=True)
class CountSettings:
    """What a count's result depends on beside fields, models and taxonomy; with them it makes the `count_id`.

    `chunk_fields` is the work of one future, `look_fields` how many fields tell a slide's scale.
    """

    min_score: float = 0.7
    tiles: TileSettings = field(default_factory=TileSettings)
    chunk_fields: int = 8
    look_fields: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score {self.min_score} is not between 0 and 1")


@dataclass(frozen=True, slots=True)
class Job:
    """One count: where it goes, with what models, how.

    `device` is auto, cpu, cuda or cuda:i, resolved on the worker.
    """

    out: UPath
    detector: ModelRef
    classifier: ModelRef | None
    taxonomy: Taxonomy
    settings: CountSettings = field(default_factory=CountSettings)
    device: str = "auto"
    force: bool = False
    verify: bool = False
    keep_pixels: bool = False

    def pixels(self, slide_id: str) -> UPath:
        """The Zarr group of a slide's pixels while it is counted, among the temporaries unless they are kept."""
        return (self.out if self.keep_pixels else self.out / ".wbc") / "pixels" / f"{slide_id}.zarr"


@dataclass(frozen=True, slots=True)
class IngestedField:
    """What reading a field told: its stamp and digest ("" where it could not be read), scale, or why it failed."""

    stamp: FieldStamp
    sha256: str
    um_per_px: float | None
    failure: str | None
    decode_seconds: float
    store_seconds: float


@dataclass(frozen=True, slots=True)
class Ingested:
    """A slide whose fields are in its Zarr group, ready to count; or, `done`, one whose count stands already."""

    slide: Slide
    fields: tuple[IngestedField, ...]
    count_id: str
    done: bool
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class CountedChunk:
    """Cells of a chunk, row by row: field index (N,), box (N,4) in field px, cell type, both scores (N,)."""

    fields: NDArray[np.int64]
    boxes: NDArray[np.float32]
    cell_types: tuple[str, ...]
    scores: NDArray[np.float32]
    type_scores: NDArray[np.float32]
    detect_seconds: float
    classify_seconds: float


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
    return count(ingest(slide, job, executor), job, executor, progress)


def remove_leftovers(out: UPath) -> None:
    """Remove what a killed run left in OUT: files half-written, and pixels that were not to be kept."""
    tables.remove_temporaries(out)
    store.remove(out / ".wbc" / "pixels")


def is_counted(slide: Slide, job: Job) -> bool:
    """Whether the slide's committed count is the one that `job` would make. Opens no field."""
    if job.force or job.verify:
        return False
    known = _known_digests(slide, job)
    if known is None:
        return False
    return tables.committed_count_id(job.out, slide.slide_id) == count_id(slide, known, job)


def unchanged(slide: Slide, out: UPath, seconds: float = 0.0) -> SlideOutcome:
    """The outcome of a slide whose committed count stands. Raises FileNotFoundError where it has none."""
    row = tables.read_slide_row(out, slide.slide_id)
    return SlideOutcome(slide.slide_id, "unchanged", row.n_fields, row.n_cells, row.failed_fields, seconds)


def _known_digests(slide: Slide, job: Job) -> dict[str, str] | None:
    """Digests of all fields from the last run, or None where a field has changed since or could not be read then."""
    saved = tables.read_stamps(job.out, slide.slide_id)
    known = {}
    for path in slide.field_paths:
        try:
            now = stamp(path)
        except FieldError:
            return None
        record = saved.get(now.name)
        if record is None or (record.size, record.modified) != (now.size, now.modified) or not record.sha256:
            return None
        known[now.name] = record.sha256
    return known


def count_id(slide: Slide, digests: dict[str, str], job: Job) -> str:
    """32 hexadecimal digits of all that a count depends on: fields, models, taxonomy, settings, given scale."""
    parts = {
        "fields": sorted(digests.items()),
        "um_per_px": slide.um_per_px,
        "detector": job.detector.sha256,
        "classifier": job.classifier.sha256 if job.classifier else None,
        "taxonomy": asdict(job.taxonomy),
        "settings": asdict(job.settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def chunks(slide: Slide, chunk_fields: int) -> list[ChunkKey]:
    """The slide's fields in ranges of at most `chunk_fields`."""
    n = len(slide.field_paths)
    return [ChunkKey(slide.slide_id, i, min(n, i + chunk_fields)) for i in range(0, n, chunk_fields)]


def ingest(slide: Slide, job: Job, executor: Executor) -> Ingested:
    """Stage 1: read, digest and store every field of a slide; `done` where that shows its count to stand already."""
    began = time.monotonic()
    pixels = job.pixels(slide.slide_id)
    store.create(pixels, slide)
    futures = [executor.submit(ingest_chunk, slide, key, pixels) for key in chunks(slide, job.settings.chunk_fields)]
    wait(futures)  # also where one failed: a retry must not meet the others' writing
    fields = tuple(f for future in futures for f in future.result())
    own_id = count_id(slide, {f.stamp.name: f.sha256 for f in fields}, job)
    done = not job.force and tables.committed_count_id(job.out, slide.slide_id) == own_id
    if done:
        if not job.keep_pixels:
            store.remove(pixels)
        _write_stamps(slide, fields, job)
    return Ingested(slide, fields, own_id, done, time.monotonic() - began)


def ingest_chunk(slide: Slide, key: ChunkKey, pixels: UPath) -> list[IngestedField]:
    """On a worker: read a chunk's fields into the slide's Zarr group. A field that cannot be read says why."""
    return [_ingest_field(slide.field_paths[f.field], f, pixels) for f in key.fields()]


def _ingest_field(path: UPath, key: FieldKey, pixels: UPath) -> IngestedField:
    began = time.monotonic()
    seen, sha256 = FieldStamp(path.name, 0, ""), ""
    try:
        seen = stamp(path)
        content = field_content(path)
        sha256 = digest(content)
        decoded, um_per_px = decode_field(path.name, content), field_um_per_px(path)
    except FieldError as error:
        return IngestedField(seen, sha256, None, error.reason, time.monotonic() - began, 0.0)
    read = time.monotonic()
    store.write_field(pixels, key, decoded)
    return IngestedField(seen, sha256, um_per_px, None, read - began, time.monotonic() - read)


def count(ingested: Ingested, job: Job, executor: Executor, progress: Progress | None = None) -> SlideOutcome:
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
        store.remove(pixels)
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


def look_for_scale(slide_id: str, fields: Sequence[int], pixels: UPath, job: Job) -> float | None:
    """On a worker: the slide's scale from the red cells of a few fields; None where they show too few."""
    detector = load(job.detector, resolve_device(job.device))
    return estimate_um_per_px([store.read_field(pixels, FieldKey(slide_id, i)) for i in fields], detector)


def count_chunk(slide_id: str, fields: Sequence[int], pixels: UPath, um_per_px: float | None, job: Job) -> CountedChunk:
    """On a worker: detect and name the cells of some stored fields, the next field read while this one is computed.

    Where the scale is not known the field is taken to be at the detector's own.
    """
    device = resolve_device(job.device)
    detector = load(job.detector, device)
    classifier = load(job.classifier, device) if job.classifier else None
    scale = um_per_px or detector.card.um_per_px
    passes = _passes(fields, scale, detector, job.settings.tiles, pixels, slide_id)
    rows, detect_seconds, classify_seconds = [], 0.0, 0.0
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_read, pixels, slide_id, passes[0])
        for number, indices in enumerate(passes):
            seen = coming.result()
            if number + 1 < len(passes):
                coming = reader.submit(_read, pixels, slide_id, passes[number + 1])
            t0 = time.monotonic()
            found = detect(seen, detector, scale, job.settings.min_score, job.settings.tiles)
            t1 = time.monotonic()
            for index, picture, cells in zip(indices, seen, found, strict=True):
                names = np.array(detector.card.classes, object)[cells.labels - 1]
                types, type_scores = _name(picture, cells.boxes, names, scale, classifier, job.taxonomy)
                rows.append((np.full(len(cells), index), cells.boxes, types, cells.scores, type_scores))
            detect_seconds, classify_seconds = detect_seconds + t1 - t0, classify_seconds + time.monotonic() - t1
    return CountedChunk(
        np.concatenate([r[0] for r in rows]),
        np.concatenate([r[1] for r in rows]),
        tuple(kind for r in rows for kind in r[2]),
        np.concatenate([r[3] for r in rows]),
        np.concatenate([r[4] for r in rows]),
        detect_seconds,
        classify_seconds,
    )


def _passes(
    fields: Sequence[int], scale: float, detector: LoadedModel, tiles: TileSettings, pixels: UPath, slide_id: str
) -> list[list[int]]:
    """Fields that go through the detector together: on a GPU as many as a batch holds, else one."""
    if detector.device.type == "cpu":
        return [[i] for i in fields]
    height, width = store.field_shape(pixels, FieldKey(slide_id, fields[0]))
    area = height * width * (scale / detector.card.um_per_px) ** 2
    step = max(1, int(tiles.batch_px // area))
    return [list(fields[i : i + step]) for i in range(0, len(fields), step)]


def _read(pixels: UPath, slide_id: str, fields: Sequence[int]) -> list[NDArray[np.uint8]]:
    return [store.read_field(pixels, FieldKey(slide_id, i)) for i in fields]


def _name(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    names: NDArray[np.object_],
    um_per_px: float,
    classifier: LoadedModel | None,
    taxonomy: Taxonomy,
) -> tuple[list[str], NDArray[np.float32]]:
    """The taxonomy's type of each cell, and the classifier's score, NaN where it did not run."""
    names, scores = names.copy(), np.full(len(names), np.nan, np.float32)
    generic = np.flatnonzero(names == GENERIC)
    if classifier is not None and len(generic):
        kinds, scores[generic] = classify(pixels, boxes[generic], um_per_px, classifier)
        sure = scores[generic] >= classifier.card.threshold
        names[generic[sure]] = np.array(classifier.card.classes, object)[kinds[sure]]
    return [taxonomy.resolve(name) for name in names], scores


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
    result = differential.count(types, job.taxonomy, len(failed))
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
    _write_stamps(ingested.slide, ingested.fields, job)
    tables.commit(job.out, cells, tables.differentials_table(slide_id, result), row)
    return row


def _write_stamps(slide: Slide, fields: Sequence[IngestedField], job: Job) -> None:
    kept = {f.stamp.name: FieldRecord(f.stamp.size, f.stamp.modified, f.sha256) for f in fields}
    tables.write_stamps(job.out, slide.slide_id, kept)


def resolve_device(device: str) -> str:
    """`auto` as this machine has it. Raises ValueError where CUDA is asked for and missing."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: no CUDA device here")
    return device
