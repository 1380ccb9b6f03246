"""Whether a GPU finds and names the cells that a CPU does: real fields, cell by cell, by number format."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import labelled_slide, pixels_of
from benchmarks.gpu_subject import CPU, Pixels, Subject, ready_on, tf32
from wbc.cells.classify import classify_together, cut_crops, predict
from wbc.cells.detect import detect
from wbc.cells.geometry import box_iou
from wbc.cells.naming import name_cells
from wbc.cells.tiles import BATCH_PX
from wbc.models import registry
from wbc.models.registry import LoadedModel
from wbc.taxonomy import GENERIC, load_taxonomy
from wbc.types import Detections

SLIDES = ("slide-04", "slide-07")
LOWEST_SCORE, COUNTED_SCORE, SAME_IOU = 0.05, 0.7, 0.5
TOGETHER_PX = 20_000_000
PAIRS = (
    ("CPU, as shipped", "CPU, float32"),
    ("device, float32 in full", "CPU, float32"),
    ("device, float32 in TF32", "CPU, float32"),
    ("device, as shipped", "CPU, float32"),
    ("device, as shipped", "CPU, as shipped"),
    ("device, as shipped, again", "device, as shipped"),
    ("device, as shipped, fields together", "device, as shipped"),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one way makes of one field: cells, their names ("" where no classifier is asked) and probabilities."""

    cells: Detections
    names: NDArray[np.object_]
    probabilities: NDArray[np.float32]


def rows(subject: Subject) -> Iterator[dict[str, object]]:
    """Each way against another, slide by slide; then the classifier alone on the same crops."""
    ways, n = _ways(subject), 2 if subject.is_gpu else 1
    crops: list[NDArray[np.uint8]] = []
    for slide in subject.in_time(SLIDES):
        pictures, um_per_px = labelled_slide(subject.data, slide)
        fields = pixels_of(pictures[:n])
        seen = {name: way(fields, um_per_px) for name, way in ways.items()}
        for way, against in PAIRS:
            yield {"slide": slide, "way": way, "against": against} | _difference(seen[against], seen[way])
        for pixels, of_field in zip(fields, seen["CPU, float32"], strict=True):
            boxes = of_field.cells.boxes[of_field.names != ""]
            crops.append(cut_crops(pixels, boxes, um_per_px, subject.classifier.card))
    yield from _classifiers(subject, np.concatenate(crops))


def _ways(subject: Subject) -> dict[str, Callable[[Sequence[Pixels], float], list[Seen]]]:
    on_cpu = registry.load(registry.resolve("bundled:classifier", "classifier")[0], "cpu")
    own = subject.classifier
    full, shipped = subject.ready(half=False), subject.shipped

    def way(detector: LoadedModel, classifier: LoadedModel, context: Any = nullcontext, batch_px: int = 0) -> Any:
        def look(fields: Sequence[Pixels], um_per_px: float) -> list[Seen]:
            with context():
                return _seen(fields, um_per_px, detector, classifier, batch_px)

        return look

    return {
        "CPU, float32": way(ready_on(subject.detector, CPU, half=False), on_cpu),
        "CPU, as shipped": way(ready_on(subject.detector, CPU, half=None), on_cpu),
        "device, float32 in full": way(full, own, lambda: tf32(False)),
        "device, float32 in TF32": way(full, own, lambda: tf32(True)),
        "device, as shipped": way(shipped, own),
        "device, as shipped, again": way(shipped, own),
        "device, as shipped, fields together": way(shipped, own, batch_px=TOGETHER_PX),
    }


def _seen(
    fields: Sequence[Pixels], um_per_px: float, detector: LoadedModel, classifier: LoadedModel, batch_px: int
) -> list[Seen]:
    calls = [fields] if batch_px else [[pixels] for pixels in fields]
    label = detector.card.classes.index(GENERIC) + 1
    seen = []
    for call in calls:
        found = detect(call, detector, um_per_px, LOWEST_SCORE, batch_px=batch_px or BATCH_PX)
        white = [cells.labels == label for cells in found]
        boxes = [cells.boxes[own] for cells, own in zip(found, white, strict=True)]
        classified = classify_together(call, boxes, um_per_px, classifier)
        parts = zip(found, white, classified, strict=True)
        seen += [_named(cells, own, told.probabilities, classifier) for cells, own, told in parts]
    return seen


def _named(
    cells: Detections, generic: NDArray[np.bool_], chances: NDArray[np.float32], classifier: LoadedModel
) -> Seen:
    card = classifier.card
    names = np.full(len(cells), "", object)
    probabilities = np.zeros((len(cells), len(card.classes)), np.float32)
    probabilities[generic] = chances
    # float16 is what is stored, and what names come of.
    stored = probabilities[generic].astype(np.float16)
    names[generic] = name_cells(stored, card.classes, load_taxonomy("blood"), card.threshold or 0.0).types
    return Seen(cells, names, probabilities)


def _difference(before: Sequence[Seen], after: Sequence[Seen]) -> dict[str, object]:
    """How two ways differ on the same fields: of counted cells who has which, of matched cells by how much."""
    parts = [_of_field(b, a) for b, a in zip(before, after, strict=True)]
    summed = {key: sum(p[key] for p in parts) for key in ("cells", "gone", "come", "named", "other name")}
    return summed | {key: float(max(p[key] for p in parts)) for key in ("box px", "score", "probability")}


def _of_field(before: Seen, after: Seen) -> dict[str, Any]:
    b, a = before.cells, after.cells
    counted, other = b.scores >= COUNTED_SCORE, a.scores >= COUNTED_SCORE
    if not len(b) or not len(a):
        return dict.fromkeys(("named", "other name", "box px", "score", "probability"), 0) | {
            "cells": int(counted.sum()),
            "gone": int(counted.sum()),
            "come": int(other.sum()),
        }
    iou = box_iou(b.boxes, a.boxes) * (b.labels[:, None] == a.labels[None])
    # A cell counted by one is the other's where that one counts it, too.
    gone = counted & ~((iou >= SAME_IOU) & other[None]).any(1)
    come = other & ~((iou >= SAME_IOU) & counted[:, None]).any(0)
    pairs = np.flatnonzero(counted & (iou.max(1) >= SAME_IOU))
    partners = iou[pairs].argmax(1)
    named = before.names[pairs] != ""
    return {
        "cells": int(counted.sum()),
        "gone": int(gone.sum()),
        "come": int(come.sum()),
        "named": int(named.sum()),
        "other name": int((before.names[pairs] != after.names[partners])[named].sum()),
        "box px": _largest(b.boxes[pairs] - a.boxes[partners]),
        "score": _largest(b.scores[pairs] - a.scores[partners]),
        "probability": _largest((before.probabilities[pairs] - after.probabilities[partners])[named]),
    }


def _largest(differences: NDArray[np.float32]) -> float:
    return float(np.abs(differences).max(initial=0))


def _classifiers(subject: Subject, crops: NDArray[np.uint8]) -> Iterator[dict[str, object]]:
    """Probabilities of the same crops, against the CPU's."""
    on_cpu = registry.load(registry.resolve("bundled:classifier", "classifier")[0], "cpu")
    expected = predict(crops, on_cpu)
    for name, allowed in (("float32 in full", False), ("float32 in TF32", True)):
        with tf32(allowed):
            found = predict(crops, subject.classifier)
        yield {
            "classifier alone": name,
            "crops": len(crops),
            "probability": _largest(found - expected),
            "other likeliest": int((found.argmax(1) != expected.argmax(1)).sum()),
        }
