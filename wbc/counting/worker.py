"""What runs on a worker: a chunk of a slide's fields read into its Zarr group, or its cells found and named.

A worker gets addresses and never pixels; it loads a model once. torch is imported where a model runs: a flow, which
only sends these calls, does without.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.counting.handover import DetectedChunk, IngestedField, ModelSeconds, ReadyField
from wbc.counting.job import Job
from wbc.models.engines import ready_classifier, ready_detector
from wbc.models.registry import LoadedModel, resolve_device
from wbc.sought import left_out
from wbc.storage.categorical import Categorical
from wbc.storage.detections import Kinds, SlideDetections
from wbc.storage.images import camera_of, decode_field, digest, field_content, um_per_px_of
from wbc.storage.pixels import PixelsLost, read_pixels, write_pixels
from wbc.storage.stamps import FieldStamp, stamp
from wbc.taxonomy import GENERIC
from wbc.types import ChunkKey, Detections, FieldError, FieldKey, Precision, cut

Pixels = NDArray[np.uint8]
logger = logging.getLogger(__name__)
_loading = Lock()  # a worker's first calls would each load the models


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a job, loaded."""

    detector: LoadedModel
    classifier: LoadedModel | None

    @property
    def kinds(self) -> Kinds | None:
        """What the classifier tells apart; None where there is none."""
        from wbc.cells.appearance import KnownLooks

        if self.classifier is None:
            return None
        card, known = self.classifier.card, KnownLooks.from_arrays(self.classifier.beside)
        limit = None if known is None else known.limit
        return Kinds(card.classes, card.threshold, card.reference_sha256, card.stranger_threshold, limit)

    @property
    def precision(self) -> Precision:
        """The number format that they run in here: `bfloat16` where one of them has it, else `float32`."""
        from wbc.models.bfloat16 import precision_of

        every = [model.module for model in (self.detector, self.classifier) if model is not None]
        return precision_of(every, self.detector.device)


@dataclass(frozen=True, slots=True)
class Batch:
    """Fields of one size and scale with their pixels uint8 (H,W,3), and the indices of others that failed, with why."""

    fields: list[ReadyField]
    pixels: list[Pixels]
    failures: tuple[tuple[int, str], ...]


def ingest_chunk(paths: Sequence[UPath], key: ChunkKey, group: UPath) -> list[IngestedField]:
    """On a worker: read a chunk's fields into the slide's Zarr group. A field that cannot be read says why."""
    return [_ingest_field(path, f, group) for path, f in zip(paths, key.fields(), strict=True)]


def _ingest_field(path: UPath, key: FieldKey, group: UPath) -> IngestedField:
    """One read of the file: digest, scale and pixels are of the same bytes, and the stamp is no younger than they."""
    began = time.monotonic()
    field = IngestedField(FieldStamp(path.name, 0, ""))
    try:
        field = replace(field, stamp=stamp(path))
        content = field_content(path)
        field = replace(field, sha256=digest(content))
        pixels = decode_field(path.name, content)
        field = replace(field, um_per_px=um_per_px_of(content), camera=camera_of(content))
    except FieldError as error:
        return replace(field, failure=error.reason, decode_seconds=time.monotonic() - began)
    field = replace(field, decode_seconds=time.monotonic() - began)
    stored = write_pixels(group, key, pixels)
    return replace(field, pixels=stored, store_seconds=time.monotonic() - began - field.decode_seconds)


def look_for_scale(fields: Sequence[ReadyField], job: Job) -> float | None:
    """On a worker: the scale of fields that share one, from the red cells of a few; None where they show too few."""
    from wbc.cells.scale import estimate_um_per_px

    batch = _read(fields, job)
    return estimate_um_per_px(batch.pixels, _detector(job))


def look_for_red_cells(field: ReadyField, job: Job) -> float | None:
    """On a worker: how large red cells are at the scale that a field was told to have, as `red_cell_um_of` says."""
    from wbc.cells.scale import red_cell_um_of

    detector, batch = _detector(job), _read([field], job)
    scale = field.um_per_px or detector.card.um_per_px
    sizes = [red_cell_um_of(pixels, scale, detector) for pixels in batch.pixels]
    return sizes[0] if sizes else None


def first_look_misses(field: ReadyField, job: Job) -> bool:
    """On a worker: whether windows show fewer white cells of a field than a whole look. False where it is lost."""
    from wbc.cells.audit import missed

    detector, batch = _detector(job), _read([field], job)
    scale = field.um_per_px or detector.card.um_per_px
    settings = job.settings
    return any(len(missed(pixels, detector, scale, settings.min_score, settings.tiles)) for pixels in batch.pixels)


def detect_chunk(fields: tuple[ReadyField, ...], job: Job) -> DetectedChunk:
    """On a worker: detect and classify the cells of stored fields, the next field read while this one is computed.

    Where the scale of a field is not known it is taken to be the detector's own. A field that cannot be counted says
    why, and costs no other.
    """
    models = _models(job)
    batches = _read_ahead(_passes(fields, models, job), job)
    return DetectedChunk.concatenate([_detect(batch, models, job) for batch in batches])


def _detect(batch: Batch, models: Models, job: Job) -> DetectedChunk:
    from wbc.cells.detect import detect, sought_alone
    from wbc.cells.scale import red_cell_um

    if not batch.fields:
        return DetectedChunk.failed(batch.failures)
    began = time.monotonic()
    scale = batch.fields[0].um_per_px or models.detector.card.um_per_px
    settings = job.settings
    # Red cells tell whether the scale is right, and only windows save the time to find them.
    in_windows = settings.tiles.sought == "white" and not batch.fields[0].is_whole
    tiles = settings.tiles if in_windows else replace(settings.tiles, sought="all")
    found = detect(batch.pixels, models.detector, scale, settings.lowest_score, tiles, job.work.batch_px)
    typical = [red_cell_um(c, p.shape, scale, models.detector) for c, p in zip(found, batch.pixels, strict=True)]
    cells = [sought_alone(of_field, models.detector, settings.tiles.sought) for of_field in found]
    detected = time.monotonic()
    named = _name(batch, cells, scale, models)
    n, classified = len(batch.fields), time.monotonic()
    shares = (detected - began) / n, (classified - detected) / n
    chunk = DetectedChunk.concatenate([*named, DetectedChunk.failed(batch.failures)])
    seconds = tuple(ModelSeconds(field.key.field, *shares) for field in batch.fields)
    return replace(
        chunk,
        precisions=frozenset([models.precision]),
        engines=frozenset([models.detector.engine]),
        seconds=seconds,
        red_cells_um={f.key.field: um for f, um in zip(batch.fields, typical, strict=True) if um is not None},
    )


def _models(job: Job) -> Models:
    detector, device = _detector(job), resolve_device(job.device)
    if job.classifier is None:
        return Models(detector, None)
    with _loading:
        return Models(detector, ready_classifier(job.classifier, device, detector.engine))


def _detector(job: Job) -> LoadedModel:
    with _loading:
        return ready_detector(job.detector, resolve_device(job.device), job.engine)


def _passes(fields: Sequence[ReadyField], models: Models, job: Job) -> list[tuple[ReadyField, ...]]:
    """Fields of one size and scale that go through the detector together: on a GPU a batch full, else one."""
    from wbc.cells.detect import suited_px

    passes: list[tuple[ReadyField, ...]] = []
    for (height, width, um_per_px), alike in groupby(fields, lambda f: (f.pixels.height, f.pixels.width, f.um_per_px)):
        card = models.detector.card
        area = height * width * ((um_per_px or card.um_per_px) / card.um_per_px) ** 2
        most_px = job.work.batch_px or suited_px(models.detector)
        most = 1 if models.detector.device.type == "cpu" else max(1, int(most_px // area))
        passes += cut(tuple(alike), most)
    return passes


def _read_ahead(passes: list[tuple[ReadyField, ...]], job: Job) -> Iterator[Batch]:
    """Each pass with its fields' pixels; the next pass is read while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_read, passes[0], job)
        for following in passes[1:]:
            batch = coming.result()
            coming = reader.submit(_read, following, job)
            yield batch
        yield coming.result()


def _read(fields: Sequence[ReadyField], job: Job) -> Batch:
    good, pixels, failures = [], [], []
    for field in fields:
        try:
            pixels.append(_pixels_of(field, job))
            good.append(field)
        except FieldError as error:
            failures.append((field.key.field, error.reason))
    return Batch(good, pixels, tuple(failures))


def _pixels_of(field: ReadyField, job: Job) -> Pixels:
    """The pixels that were stored; where they are lost, those of the file that they came from. Raises FieldError."""
    try:
        return read_pixels(job.pixels_group(field.key.slide_id), field.key, field.pixels)
    except PixelsLost as lost:
        logger.warning("%s: the file is read again: %s", field.path.name, lost)
    content = field_content(field.path)
    if digest(content) != field.sha256:
        raise FieldError(field.path.name, "changed while it was counted")
    return decode_field(field.path.name, content)


def _name(batch: Batch, cells: Sequence[Detections], um_per_px: float, models: Models) -> list[DetectedChunk]:
    """The boxes of each field with the classes of the detector, and the probabilities of the classifier where it ran.

    float16 is what is stored: whoever counts, now or later, names cells by the same numbers.
    """
    from wbc.cells.classify import checked, classify_together

    kinds, card = models.kinds, models.detector.card
    classes = [Categorical((of_field.labels - 1).astype(np.int32), card.classes) for of_field in cells]
    generic = [np.flatnonzero(of_field.where(GENERIC)) for of_field in classes]
    boxes = [of_field.boxes[rows] for of_field, rows in zip(cells, generic, strict=True)]
    classifier = models.classifier
    classified = classify_together(batch.pixels, boxes, um_per_px, classifier) if classifier else []
    chunks = []
    for i, (field, own) in enumerate(zip(batch.fields, cells, strict=True)):
        probabilities = np.full((len(own), len(kinds.names) if kinds else 0), np.nan, np.float16)
        distances = np.full(len(own), np.nan, np.float32)
        if classifier is not None:
            try:
                probabilities[generic[i]], distances[generic[i]] = checked(classified[i], classifier)
            except FloatingPointError as error:
                chunks.append(DetectedChunk.failed(((field.key.field, str(error)),)))
                continue
        files = Categorical.repeat(field.path.name, len(own))
        prints = _prints(batch.pixels[i], own.boxes, classes[i], um_per_px)
        rows = SlideDetections(files, own.boxes, classes[i], own.scores, probabilities, distances, prints)
        chunks.append(DetectedChunk(rows, kinds))
    return chunks


def _prints(pixels: Pixels, boxes: NDArray[np.float32], classes: Categorical, um_per_px: float) -> Categorical:
    """The prints of a field's white cells, "" of its other boxes."""
    from wbc.cells.prints import cell_prints

    white = ~np.any([classes.where(name) for name in left_out("white")], 0)
    prints = np.full(len(boxes), "", object)
    prints[white] = cell_prints(pixels, boxes[white], um_per_px)
    return Categorical.of(prints)
