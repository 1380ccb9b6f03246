"""A detector against labelled fields: COCO's figures by pycocotools, and for each true cell whether it was found."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbc.cells.detect import detect
from wbc.cells.geometry import box_iou
from wbc.cells.tiles import TileSettings
from wbc.datasets.coco import coco_truth
from wbc.datasets.labels import LabelledPicture
from wbc.evaluation.frozen import FrozenSet, detector_labels
from wbc.evaluation.noise import Told, Weights
from wbc.models.registry import LoadedModel
from wbc.taxonomy import Taxonomy
from wbc.types import Detections

LOWEST_SCORE = 0.05
MATCH_IOU = 0.5
MOST_BOXES = (1, 10, 100, 1000)
AREAS = ("all", "small", "medium", "large")
RECALLS = np.linspace(0, 1, 101)
NOTHING = "nothing"


@dataclass(frozen=True, slots=True, eq=False)
class FoundSet:
    """What a detector finds in the fields of one set, beside the truth in its own classes.

    `truth` are pictures with width and height in px, whose labels are among `classes`; `left_out` is how many true
    boxes are of none of them.
    """

    name: str
    classes: tuple[str, ...]
    truth: tuple[tuple[LabelledPicture, int, int], ...]
    found: tuple[Detections, ...]
    left_out: int = 0


def find(one: FrozenSet, model: LoadedModel, taxonomy: Taxonomy) -> FoundSet:
    """Run a detector over the fields of a set, as a count does, from a low score on."""
    classes, truth, found, left_out = model.card.classes, [], [], 0
    for picture, um_per_px, pixels in one.read():
        labels = detector_labels(picture.labels, classes, taxonomy)
        kept = [i for i, label in enumerate(labels) if label is not None]
        own = LabelledPicture(picture.path, picture.boxes[kept], tuple(str(labels[i]) for i in kept))
        truth.append((own, pixels.shape[1], pixels.shape[0]))
        found += detect([pixels], model, um_per_px, LOWEST_SCORE, TileSettings())
        left_out += len(labels) - len(kept)
    return FoundSet(one.name, classes, tuple(truth), tuple(found), left_out)


@dataclass(frozen=True, slots=True, eq=False)
class BoxScore:
    """How the boxes of a set fare at an IoU of 0.5, as COCO pairs them, class by class, the surest first.

    Of D boxes found: `fields`, `labels` (indices of `classes`), `scores`, and whether they `hit` a true cell of their
    class. Of N true cells: `true_fields`, `true_labels`, and the score of the box that has each, NaN for none.
    """

    classes: tuple[str, ...]
    n_fields: int
    fields: NDArray[np.int64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    true_fields: NDArray[np.int64]
    true_labels: NDArray[np.int64]
    true_scores: NDArray[np.float64]

    def told(self, min_score: float) -> Told:
        """The true cells, and whether each was found with at least `min_score`."""
        kinds = np.array(self.classes, object)[self.true_labels]
        return Told(kinds, np.nan_to_num(self.true_scores, nan=-1) >= min_score, self.true_fields, self.n_fields)

    def ap50(self, weights: Weights) -> NDArray[np.float64]:
        """AP at an IoU of 0.5 of each class (R,C), for draws of the fields (R,fields); NaN where there is no true cell.

        COCO's: precision at 101 recalls, each the best at that recall or a higher one.
        """
        return np.stack([self._ap50_of(c, weights) for c in range(len(self.classes))], 1)

    def _ap50_of(self, label: int, weights: Weights) -> NDArray[np.float64]:
        own = np.flatnonzero(self.labels == label)
        own = own[np.argsort(-self.scores[own], kind="stable")]
        n_true = weights @ np.bincount(self.true_fields[self.true_labels == label], minlength=self.n_fields)
        fields, hit = self.fields[own], self.hit[own]
        values = np.full(len(weights), np.nan)
        for r in np.flatnonzero(n_true):
            drawn = weights[r][fields]
            values[r] = _average_precision(drawn * hit, drawn, n_true[r])
        return values


def _average_precision(hits: NDArray[np.int64], drawn: NDArray[np.int64], n_true: int) -> float:
    """COCO's AP of boxes from the surest down: how often each was drawn, and a hit, of `n_true` cells."""
    if not len(hits):
        return 0.0
    found, every = np.cumsum(hits), np.cumsum(drawn)
    precision = found / (every + np.spacing(1))
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(best[np.searchsorted(found / n_true, RECALLS, side="left")].mean())


def score_boxes(found: FoundSet) -> tuple[dict[str, float], BoxScore]:
    """COCO's figures of a set by pycocotools, and how its boxes fare at an IoU of 0.5.

    AP, AP50 and AP75, AP by size and AP50 by class take up to 1,000 boxes a field; AR up to 1, 10, 100 and 1,000. NaN
    where there is no true cell. Needs pycocotools (the training extra).
    """
    scoring = _scored(found, MOST_BOXES)
    precision, recall = scoring.eval["precision"], scoring.eval["recall"]  # IoU, recall, class, area, most boxes
    figures = {"AP": _mean(precision[..., 0, -1])}
    figures |= {"AP50": _mean(precision[0, ..., 0, -1]), "AP75": _mean(precision[5, ..., 0, -1])}
    figures |= {f"AP_{area}": _mean(precision[..., i, -1]) for i, area in enumerate(AREAS) if i}
    figures |= {f"AR_{most}": _mean(recall[..., 0, i]) for i, most in enumerate(MOST_BOXES)}
    figures |= {f"AP50_{name}": _mean(precision[0, :, i, 0, -1]) for i, name in enumerate(found.classes)}
    return figures, _box_score(scoring, found)


def score_roughly(found: FoundSet) -> BoxScore:
    """How the boxes of a set fare at an IoU of 0.5: a tenth of the time of all of COCO's figures."""
    return _box_score(_scored(found, MOST_BOXES[-1:]), found)


def _scored(found: FoundSet, most: Sequence[int]) -> Any:
    """pycocotools' evaluation with so many boxes a field; with one number alone only at an IoU of 0.5, and any size."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    pictures = [(f"{i}", width, height, picture) for i, (picture, width, height) in enumerate(found.truth)]
    rows = [
        {"image_id": i, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
        for i, d in enumerate(found.found, 1)
        for (x0, y0, x1, y1), score, label in zip(d.boxes.tolist(), d.scores, d.labels, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference, answers = COCO(), COCO()
        reference.dataset = coco_truth(pictures, list(found.classes))
        reference.createIndex()
        answers.dataset = reference.dataset | {"annotations": []}
        answers.createIndex()
        scoring = COCOeval(reference, reference.loadRes(rows) if rows else answers, "bbox")
        scoring.params.maxDets = list(most)
        if len(most) == 1:
            scoring.params.iouThrs, scoring.params.areaRng = np.array([MATCH_IOU]), scoring.params.areaRng[:1]
        scoring.evaluate()
        if len(most) > 1:
            scoring.accumulate()
    return scoring


def _mean(values: NDArray[Any]) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else float("nan")


def _box_score(scoring: Any, found: FoundSet) -> BoxScore:
    boxes: list[tuple[int, int, float, bool]] = [(0, 0, 0.0, False)]
    cells: list[tuple[int, int, float]] = [(0, 0, 0.0)]
    for pair in scoring.evalImgs:
        if pair is None or pair["aRng"] != scoring.params.areaRng[0]:
            continue
        place = (pair["image_id"] - 1, pair["category_id"] - 1)
        scores = dict(zip(pair["dtIds"], pair["dtScores"], strict=True))
        matches = zip(pair["dtScores"], pair["dtMatches"][0], pair["dtIgnore"][0], strict=True)
        boxes += [(*place, float(score), match > 0) for score, match, passed_over in matches if not passed_over]
        cells += [(*place, scores.get(int(match), np.nan)) for match in pair["gtMatches"][0]]
    fields, labels, all_scores, hit = (np.array(column) for column in zip(*boxes, strict=True))
    true_fields, true_labels, true_scores = (np.array(column) for column in zip(*cells, strict=True))
    found_columns = fields[1:], labels[1:], all_scores[1:].astype(np.float64), hit[1:].astype(bool)
    return BoxScore(
        found.classes, len(found.truth), *found_columns, true_fields[1:], true_labels[1:], true_scores[1:]
    )  # fmt: skip


def confusion_of(found: FoundSet, min_score: float) -> NDArray[np.int64]:
    """What true cells were found as, int64 (C+1,C+1): rows true, columns found, the last of each nothing at all.

    Boxes of at least `min_score` and cells are paired at an IoU of 0.5 whatever their class, the surest box first.
    """
    n = len(found.classes)
    matrix = np.zeros((n + 1, n + 1), np.int64)
    for (picture, _, _), every in zip(found.truth, found.found, strict=True):
        cells = every.take(every.scores >= min_score)
        true = np.array([found.classes.index(label) for label in picture.labels], np.int64)
        partners = pair(cells, picture.boxes)
        np.add.at(matrix, (np.where(partners < 0, n, np.append(true, n)[partners]), cells.labels - 1), 1)
        missed = np.setdiff1d(np.arange(len(true)), partners)
        np.add.at(matrix, (true[missed], np.full(len(missed), n)), 1)
    return matrix


def pair(cells: Detections, boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """For each cell found the index of the true box (M,4) that it is, -1 for none: one to one, the surest first."""
    partners = np.full(len(cells), -1, np.int64)
    if not len(cells) or not len(boxes):
        return partners
    overlap = box_iou(cells.boxes, boxes)
    for i in np.argsort(-cells.scores, kind="stable"):
        best = int(overlap[i].argmax())
        if overlap[i, best] >= MATCH_IOU:
            partners[i] = best
            overlap[:, best] = 0
    return partners
