"""What runs on a worker: a chunk of a slide's fields read into its Zarr group, or its cells found and named.

A worker gets addresses and never pixels; it loads a model once.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.cells.classify import classify, name_cells
from wbc.cells.detect import TileSettings, detect
from wbc.cells.scale import estimate_um_per_px
from wbc.counting.job import Job
from wbc.models.registry import LoadedModel, load, resolve_device
from wbc.storage.images import decode_field, digest, field_content, field_um_per_px
from wbc.storage.pixels import read_pixels, stored_size, write_pixels
from wbc.storage.stamps import FieldStamp, stamp
from wbc.taxonomy import GENERIC, Taxonomy
from wbc.types import ChunkKey, FieldError, FieldKey, Slide


@dataclass(frozen=True, slots=True)
class IngestedField:
    """What reading a field told: its stamp and digest ("" where it could not be read), scale, or why it failed."""

    stamp: FieldStamp
    sha256: str
    um_per_px: float | None
    failure: str | None
    decode_seconds: float
    store_seconds: float


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
    write_pixels(pixels, key, decoded)
    return IngestedField(seen, sha256, um_per_px, None, read - began, time.monotonic() - read)


def look_for_scale(slide_id: str, fields: Sequence[int], pixels: UPath, job: Job) -> float | None:
    """On a worker: the slide's scale from the red cells of a few fields; None where they show too few."""
    detector = load(job.detector, resolve_device(job.device))
    return estimate_um_per_px([read_pixels(pixels, FieldKey(slide_id, i)) for i in fields], detector)


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
    height, width = stored_size(pixels, FieldKey(slide_id, fields[0]))
    area = height * width * (scale / detector.card.um_per_px) ** 2
    step = max(1, int(tiles.batch_px // area))
    return [list(fields[i : i + step]) for i in range(0, len(fields), step)]


def _read(pixels: UPath, slide_id: str, fields: Sequence[int]) -> list[NDArray[np.uint8]]:
    return [read_pixels(pixels, FieldKey(slide_id, i)) for i in fields]


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
        chances = classify(pixels, boxes[generic], um_per_px, classifier)
        card = classifier.card
        names[generic], scores[generic] = name_cells(chances, card.classes, taxonomy, card.threshold)
    return [taxonomy.resolve(name) for name in names], scores
