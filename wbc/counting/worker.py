"""What runs on a worker: a chunk of a slide's fields read into its Zarr group, or its cells found and named.

A worker gets addresses and never pixels; it loads a model once.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.cells.classify import classify, name_cells
from wbc.cells.detect import TileSettings, detect
from wbc.cells.scale import estimate_um_per_px
from wbc.counting.handover import CountedChunk, IngestedField
from wbc.counting.job import Job
from wbc.models.registry import LoadedModel, load, resolve_device
from wbc.storage.images import decode_field, digest, field_content, um_per_px_of
from wbc.storage.pixels import read_pixels, stored_size, write_pixels
from wbc.storage.stamps import FieldStamp, stamp
from wbc.taxonomy import GENERIC, Taxonomy
from wbc.types import ChunkKey, Detections, FieldError, FieldKey, Slide

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a job, loaded, with the taxonomy that says what their classes mean."""

    detector: LoadedModel
    classifier: LoadedModel | None
    taxonomy: Taxonomy


def ingest_chunk(slide: Slide, key: ChunkKey, group: UPath) -> list[IngestedField]:
    """On a worker: read a chunk's fields into the slide's Zarr group. A field that cannot be read says why."""
    return [_ingest_field(slide.field_paths[f.field], f, group) for f in key.fields()]


def _ingest_field(path: UPath, key: FieldKey, group: UPath) -> IngestedField:
    """One read of the file: digest, scale and pixels are of the same bytes, and the stamp is no younger than they."""
    began = time.monotonic()
    taken, sha256 = FieldStamp(path.name, 0, ""), ""
    try:
        taken = stamp(path)
        content = field_content(path)
        sha256 = digest(content)
        pixels, um_per_px = decode_field(path.name, content), um_per_px_of(content)
    except FieldError as error:
        return IngestedField(taken, sha256, None, error.reason, time.monotonic() - began, 0.0)
    decoded = time.monotonic()
    write_pixels(group, key, pixels)
    return IngestedField(taken, sha256, um_per_px, None, decoded - began, time.monotonic() - decoded)


def look_for_scale(key: ChunkKey, group: UPath, job: Job) -> float | None:
    """On a worker: the slide's scale from the red cells of a few fields; None where they show too few."""
    return estimate_um_per_px(_read(key, group), load(job.detector, resolve_device(job.device)))


def count_chunk(key: ChunkKey, group: UPath, um_per_px: float | None, job: Job) -> CountedChunk:
    """On a worker: detect and name the cells of some stored fields, the next field read while this one is computed.

    Where the scale is not known the field is taken to be at the detector's own.
    """
    models = _models(job)
    scale = um_per_px or models.detector.card.um_per_px
    parts = []
    for part, fields in _read_ahead(_passes(key, scale, models.detector, job.settings.tiles, group), group):
        began = time.monotonic()
        cells = detect(fields, models.detector, scale, job.settings.min_score, job.settings.tiles)
        detected = time.monotonic()
        for index, pixels, boxes in zip(part.indices, fields, cells, strict=True):
            parts.append(_name(index, pixels, boxes, scale, models))
        parts.append(CountedChunk.seconds(detected - began, time.monotonic() - detected))
    return CountedChunk.concatenate(parts)


def _models(job: Job) -> Models:
    device = resolve_device(job.device)
    classifier = load(job.classifier, device) if job.classifier else None
    return Models(load(job.detector, device), classifier, job.taxonomy)


def _passes(key: ChunkKey, scale: float, detector: LoadedModel, tiles: TileSettings, group: UPath) -> list[ChunkKey]:
    """Fields that go through the detector together: on a GPU as many as a batch holds, else one."""
    if detector.device.type == "cpu":
        return key.cut(1)
    height, width = stored_size(group, key.fields()[0])
    area = height * width * (scale / detector.card.um_per_px) ** 2
    return key.cut(max(1, int(tiles.batch_px // area)))


def _read_ahead(passes: list[ChunkKey], group: UPath) -> Iterator[tuple[ChunkKey, list[Pixels]]]:
    """Each pass with its fields' pixels; the next pass is read while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_read, passes[0], group)
        for this, following in zip(passes, [*passes[1:], None], strict=True):
            fields = coming.result()
            if following is not None:
                coming = reader.submit(_read, following, group)
            yield this, fields


def _read(key: ChunkKey, group: UPath) -> list[Pixels]:
    return [read_pixels(group, field) for field in key.fields()]


def _name(index: int, pixels: Pixels, cells: Detections, um_per_px: float, models: Models) -> CountedChunk:
    """The cells of one field by the taxonomy's types, with the classifier's scores, NaN where it did not run."""
    names = np.array(models.detector.card.classes, object)[cells.labels - 1]
    scores = np.full(len(names), np.nan, np.float32)
    generic = np.flatnonzero(names == GENERIC)
    if models.classifier is not None and len(generic):
        chances = classify(pixels, cells.boxes[generic], um_per_px, models.classifier)
        card = models.classifier.card
        names[generic], scores[generic] = name_cells(chances, card.classes, models.taxonomy, card.threshold)
    types = tuple(models.taxonomy.resolve(name) for name in names)
    return CountedChunk(np.full(len(cells), index), cells.boxes, types, cells.scores, scores)
