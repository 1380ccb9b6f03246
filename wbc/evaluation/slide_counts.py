"""What counts in the end: the differential of frozen slides, as a count makes it, against the labelled one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbc.cells.classify import classify
from wbc.cells.detect import detect
from wbc.cells.naming import name_cells
from wbc.cells.tiles import TileSettings
from wbc.differential import clopper_pearson
from wbc.evaluation.boxes import LOWEST_SCORE, pair
from wbc.evaluation.frozen import FrozenSet, by_slide, is_named_white, kind_of, top_kinds
from wbc.evaluation.noise import NoiseSettings, draw, limits
from wbc.models.registry import LoadedModel
from wbc.taxonomy import GENERIC, Taxonomy

Counts = NDArray[np.int64]


def differential_rows(
    one: FrozenSet,
    detector: LoadedModel,
    classifier: LoadedModel,
    taxonomy: Taxonomy,
    min_score: float,
    noise: NoiseSettings,
) -> tuple[list[dict[str, Any]], float, tuple[float, float]]:
    """A row for each kind of each slide of a set, the mean absolute error in points over them, and its limits.

    A row has the labelled and the counted percentage, the count's 95 % limits, and whether the labelled one is inside.
    A white cell that is labelled by no kind is left out on both sides; one that is missed or invented counts. No rows
    where no kind is labelled.
    """
    kinds = top_kinds(_labels(one, taxonomy), taxonomy)
    if not kinds:
        return [], float("nan"), (float("nan"), float("nan"))
    true, counted = _counts(one, detector, classifier, taxonomy, min_score, kinds)
    rows, slides = [], by_slide(picture for picture, _ in one.pictures)
    for slide, fields in slides.items():
        rows += _slide_rows(one.name, slide, kinds, true[fields].sum(0), counted[fields].sum(0))
    drawn = draw({name: len(fields) for name, fields in slides.items()}, noise)
    errors = [_errors(drawn[name] @ true[fields], drawn[name] @ counted[fields]) for name, fields in slides.items()]
    error = float(np.nanmean([row["error_points"] for row in rows]))
    return rows, error, limits(np.nanmean(np.concatenate(errors, 1), 1), noise)


def _labels(one: FrozenSet, taxonomy: Taxonomy) -> list[str]:
    return [label for picture, _ in one.pictures for label in picture.labels if is_named_white(label, taxonomy)]


def _counts(
    one: FrozenSet,
    detector: LoadedModel,
    classifier: LoadedModel,
    taxonomy: Taxonomy,
    min_score: float,
    kinds: Sequence[str],
) -> tuple[Counts, Counts]:
    """Cells of each kind in each field (F,K+1), labelled and counted; the last column is all that is none of them."""
    true, counted = np.zeros((2, len(one.pictures), len(kinds) + 1), np.int64)
    for i, (picture, um_per_px, pixels) in enumerate(one.read()):
        white = [j for j, label in enumerate(picture.labels) if label == GENERIC or is_named_white(label, taxonomy)]
        labels, boxes = [picture.labels[j] for j in white], picture.boxes[white]
        (cells,) = detect([pixels], detector, um_per_px, LOWEST_SCORE, TileSettings())
        is_white = np.array([detector.card.classes[label - 1] == GENERIC for label in cells.labels], bool)
        cells = cells.take((cells.scores >= min_score) & is_white)
        partners = pair(cells, boxes)
        unsure = np.array([p >= 0 and labels[p] == GENERIC for p in partners], bool)
        cells = cells.take(~unsure)
        chances = classify(pixels, cells.boxes, um_per_px, classifier).probabilities
        names = name_cells(chances, classifier.card.classes, taxonomy, classifier.card.threshold).types
        for table, words in ((true, [name for name in labels if name != GENERIC]), (counted, names)):
            for word in words:
                if taxonomy.cell_type(word).in_differential:
                    kind = kind_of(word, kinds, taxonomy)
                    table[i, kinds.index(kind) if kind else -1] += 1
    return true, counted


def _slide_rows(name: str, slide: str, kinds: Sequence[str], true: Counts, counted: Counts) -> list[dict[str, Any]]:
    n_true, n = int(true.sum()), int(counted.sum())
    low, high = clopper_pearson(counted, n) if n else (np.zeros(len(counted)), np.ones(len(counted)))
    rows = []
    for k, kind in enumerate(kinds):
        labelled = 100 * int(true[k]) / n_true if n_true else float("nan")
        percent = 100 * int(counted[k]) / n if n else float("nan")
        rows.append(
            {
                "set": name,
                "slide": slide,
                "kind": kind,
                "labelled": int(true[k]),
                "counted": int(counted[k]),
                "labelled_percent": labelled,
                "counted_percent": percent,
                "low": 100 * float(low[k]),
                "high": 100 * float(high[k]),
                "inside": bool(100 * low[k] <= labelled <= 100 * high[k]),
                "error_points": abs(percent - labelled),
            }
        )
    return rows


def _errors(true: Counts, counted: Counts) -> NDArray[np.float64]:
    """Absolute errors in points (R,K) of draws of counts (R,K+1); NaN where a draw has no cell."""
    return np.asarray(np.abs(_percent(true) - _percent(counted))[:, :-1])


def _percent(counts: Counts) -> NDArray[np.float64]:
    """Counts (R,K) in percent of their row; NaN where it has none."""
    sums = np.broadcast_to(counts.sum(1, keepdims=True), counts.shape)
    return np.asarray(100 * np.divide(counts, sums, out=np.full(counts.shape, np.nan), where=sums > 0))
