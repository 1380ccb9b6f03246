"""Seconds to merge the boxes of one crowded field, beside torchvision's `batched_nms` where that can do it."""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from benchmarks.common import Claim, Report, Row, parser, show
from wbc.cells.detect import MERGE_IOU
from wbc.cells.geometry import merge
from wbc.types import Detections

BAR_SECONDS = 1.0
FIELD_PX = (2560, 1920)
MOST_FOR_TORCHVISION = 20_000


def scattered(n: int, rng: np.random.Generator) -> Detections:
    """`n` boxes of 20 to 40 px anywhere in a field, three classes."""
    return _boxes(rng.uniform(0, FIELD_PX, (n, 2)), rng.uniform(20, 40, (n, 2)), rng)


def on_one_spot(n: int, rng: np.random.Generator) -> Detections:
    """`n` boxes of about 40 px that all lie on one cell: the worst case, every pair overlaps."""
    return _boxes(rng.normal(100, 1, (n, 2)), rng.normal(40, 1, (n, 2)), rng)


def _boxes(middles: NDArray[np.float64], sides: NDArray[np.float64], rng: np.random.Generator) -> Detections:
    boxes = np.concatenate([middles - sides / 2, middles + sides / 2], 1).astype(np.float32)
    scores = rng.permutation(len(boxes)).astype(np.float32) / np.float32(len(boxes))
    return Detections(boxes, scores, rng.integers(1, 4, len(boxes)))


def measure(sizes: Sequence[int], rounds: int) -> Report:
    """Both layouts at each size, the fastest of `rounds`; the largest size is held to the bar."""
    rows: list[Row] = []
    claims = []
    for name, layout in (("scattered", scattered), ("on one spot", on_one_spot)):
        for n in sizes:
            detections = layout(n, np.random.default_rng(n))
            n_left, seconds = _fastest(partial(_n_merged, detections), rounds)
            peer = _torchvision(detections, rounds) if n <= MOST_FOR_TORCHVISION else None
            rows.append(
                {
                    "boxes": n,
                    "layout": name,
                    "kept": n_left,
                    "merge s": seconds,
                    "batched_nms kept": peer[0] if peer else "–",
                    "batched_nms s": peer[1] if peer else "–",
                }
            )
        claims.append(Claim(f"merge of {sizes[-1]:,} boxes, {name}", seconds, "s", at_most=BAR_SECONDS))
    return Report("Merging the boxes of one field", claims, {f"IoU {MERGE_IOU}, {FIELD_PX[0]}×{FIELD_PX[1]} px": rows})


def _n_merged(detections: Detections) -> int:
    return len(merge(detections, MERGE_IOU))


def _torchvision(detections: Detections, rounds: int) -> tuple[int, float]:
    boxes, scores, labels = (torch.from_numpy(v) for v in (detections.boxes, detections.scores, detections.labels))
    return _fastest(lambda: len(batched_nms(boxes, scores, labels, MERGE_IOU)), rounds)


def _fastest(work: Callable[[], int], rounds: int) -> tuple[int, float]:
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        n = work()
        seconds.append(time.process_time() - began)
    return n, min(seconds)


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 100_000])
    command.add_argument("--rounds", type=int, default=3)
    chosen: Namespace = command.parse_args()
    torch.set_num_threads(1)
    show(measure(chosen.sizes, chosen.rounds), as_json=chosen.json)


if __name__ == "__main__":
    main()
