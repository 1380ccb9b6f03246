"""How good a model is: COCO average precision of boxes, accuracy and confusion of kinds."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wbc.datasets.coco import coco_truth
from wbc.datasets.labels import LabelledPicture
from wbc.types import Detections

MOST_BOXES = 1000


def average_precision(
    truth: Sequence[tuple[LabelledPicture, int, int]], detections: Sequence[Detections], classes: Sequence[str]
) -> dict[str, float]:
    """COCO's AP (IoU 0.50 to 0.95), AP50, AP75 and AP50 of each class, with up to 1,000 boxes a picture.

    `truth` gives each picture's boxes, width and height; `detections` are a detector's there, labels counting from 1
    in `classes`. NaN where a class has no true box. Needs pycocotools (the training extra).
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    pictures = [(f"{i}", width, height, picture) for i, (picture, width, height) in enumerate(truth)]
    rows = [
        {"image_id": i, "category_id": int(label), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(score)}
        for i, d in enumerate(detections, 1)
        for (x0, y0, x1, y1), score, label in zip(d.boxes.tolist(), d.scores, d.labels, strict=True)
    ]
    if not rows:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0} | {f"AP50_{name}": 0.0 for name in classes}
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = coco_truth(pictures, list(classes))
        reference.createIndex()
        scoring = COCOeval(reference, reference.loadRes(rows), "bbox")
        scoring.params.maxDets = [1, 100, MOST_BOXES]
        scoring.evaluate()
        scoring.accumulate()
    precision = scoring.eval["precision"][..., 0, 2]  # IoU, recall, class
    return {"AP": _mean(precision), "AP50": _mean(precision[0]), "AP75": _mean(precision[5])} | {
        f"AP50_{name}": _mean(precision[0, :, i]) for i, name in enumerate(classes)
    }


def _mean(precision: NDArray[Any]) -> float:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else float("nan")


def confusion(true: Sequence[str], answers: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Counts (true class, named class) int64 (C,C), in the order of `classes`. Raises ValueError for other names."""
    if unknown := (set(true) | set(answers)) - set(classes):
        raise ValueError(f"{sorted(unknown)} are none of {list(classes)}")
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    index = {name: i for i, name in enumerate(classes)}
    for t, n in zip(true, answers, strict=True):
        matrix[index[t], index[n]] += 1
    return matrix


def kind_accuracy(matrix: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy over all cells, and recall averaged over classes, of a `confusion` matrix; NaN where it is empty."""
    of_class = matrix.sum(1)
    if not of_class.sum():
        return {"accuracy": float("nan"), "macro_recall": float("nan")}
    recall = np.diag(matrix)[of_class > 0] / of_class[of_class > 0]
    return {"accuracy": float(np.trace(matrix) / of_class.sum()), "macro_recall": float(recall.mean())}
