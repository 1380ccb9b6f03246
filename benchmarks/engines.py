"""The detector by each engine on labelled slides: AP, cells by class, and cell by cell what comes and what goes.

The first is the model as a training leaves it, in torch; the others are as `wbc count --engine` runs it, and are held
against `torch`. They take turns field by field; two boxes of one class are one cell where they overlap by IoU 0.5.
"""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import Claim, Report, Row, labelled_slide, parser, pixels_of, score, show
from wbc.cells.detect import detect
from wbc.cells.geometry import box_iou
from wbc.models import registry
from wbc.models.engines import ready_detector
from wbc.models.registry import LoadedModel
from wbc.types import Detections

BASE = "torch"
LOWEST_SCORE, COUNTED_SCORE, SAME_IOU = 0.05, 0.7, 0.5
MOST_AP_LOST, MOST_COUNTS_MOVED = 0.005, 0.01


def measure(data: Path, slide: str, models: dict[str, LoadedModel]) -> tuple[list[Row], list[Claim]]:
    """A row for each way to run the detector on a slide, and the claims on those after the first."""
    pictures, um_per_px = labelled_slide(data, slide)
    fields = pixels_of(pictures)
    found: dict[str, list[Detections]] = {name: [] for name in models}
    seconds: Counter[str] = Counter()
    for pixels in fields:
        for name, model in models.items():
            began = time.process_time()
            found[name] += detect([pixels], model, um_per_px, LOWEST_SCORE)
            seconds[name] += time.process_time() - began
    rows, claims, first = [], [], next(iter(models))
    classes = models[first].card.classes
    for name, of_fields in found.items():
        figures = score(pictures, fields, of_fields, classes)
        gone, come = _differences(found[first], of_fields)
        counts = _counts(of_fields, classes)
        rows.append(
            {"slide": slide, "way": name, "CPU s a field": round(seconds[name] / len(fields), 3)}
            | {"AP": round(figures["AP"], 4), "AP50": round(figures["AP50"], 4)}
            | {f"n {kind}": counts[kind] for kind in classes}
            | {"gone": gone, "come": come}
        )
        if name not in (first, BASE):
            base = _counts(found[BASE], classes)
            moved = max(abs(counts[k] - base[k]) / max(1, base[k]) for k in classes)
            lost = float(rows[1]["AP"]) - figures["AP"]
            claims.append(Claim(f"{slide}, {name}: AP lost", lost, at_most=MOST_AP_LOST))
            claims.append(Claim(f"{slide}, {name}: counts moved by", moved, at_most=MOST_COUNTS_MOVED))
    return rows, claims


def _counts(of_fields: Sequence[Detections], classes: Sequence[str]) -> Counter[str]:
    return Counter(classes[label - 1] for d in of_fields for label in d.labels[d.scores >= COUNTED_SCORE])


def _differences(before: Sequence[Detections], after: Sequence[Detections]) -> tuple[int, int]:
    """How many counted cells of one are not counted by the other, and the other way round."""
    pairs = [(_counted(b), _counted(a)) for b, a in zip(before, after, strict=True)]
    return sum(_unmatched(b, a) for b, a in pairs), sum(_unmatched(a, b) for b, a in pairs)


def _counted(cells: Detections) -> Detections:
    return cells.take(cells.scores >= COUNTED_SCORE)


def _unmatched(cells: Detections, others: Detections) -> int:
    if not len(others):
        return len(cells)
    same = (box_iou(cells.boxes, others.boxes) >= SAME_IOU) & (cells.labels[:, None] == others.labels[None])
    return int(np.count_nonzero(~same.any(1)))


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="folder of labelled slides")
    command.add_argument("--slides", nargs="+", default=["slide-04", "slide-07"])
    command.add_argument("--detector", default="bundled:detector")
    chosen = command.parse_args()
    ref, _ = registry.resolve(chosen.detector, "detector")
    models = {"as trained": registry.load(ref, "cpu")}
    models |= {BASE: ready_detector(ref, "cpu", "torch"), "openvino": ready_detector(ref, "cpu", "openvino")}
    rows: list[Row] = []
    claims: list[Claim] = []
    for slide in chosen.slides:
        of_slide, claimed = measure(chosen.data, slide, models)
        rows, claims = rows + of_slide, claims + claimed
    show(Report("The detector by each engine", claims, {"Slides": rows}), as_json=chosen.json)


if __name__ == "__main__":
    main()
