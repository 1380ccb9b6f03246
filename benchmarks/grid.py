"""What the place of the tile grid changes: counts and AP50 of labelled slides for three tile origins, small tiles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common import Claim, Report, Row, labelled_slide, parser, pixels_of, score, show
from wbc.cells.detect import detect
from wbc.cells.tiles import TileSettings
from wbc.counting.slide import CountSettings
from wbc.models import registry
from wbc.models.registry import LoadedModel
from wbc.types import Detections

BAR_COUNTS_PERCENT, BAR_AP50 = 2.0, 0.01
ORIGINS = ((0, 0), (97, 151), (211, 53))
LOWEST_SCORE = 0.05
SLIDES = [f"slide-{i:02d}" for i in range(1, 9)]


def measure(data: Path, slide_ids: Sequence[str], model: LoadedModel, tile_px: int) -> Report:
    """Cells a class at the default threshold, and AP50 over all scores, for each slide and origin."""
    rows: list[Row] = []
    gaps: list[dict[str, float]] = []
    for slide_id in slide_ids:
        pictures, um_per_px = labelled_slide(data, slide_id)
        fields = pixels_of(pictures)
        figures = []
        for origin in ORIGINS:
            tiles = TileSettings(tile_px=tile_px, origin=origin)
            detections = [detect([pixels], model, um_per_px, LOWEST_SCORE, tiles)[0] for pixels in fields]
            counts = _counts(detections, model.card.classes)
            figures.append(counts | {"AP50": score(pictures, fields, detections, model.card.classes)["AP50"]})
            rows.append({"slide": slide_id, "origin (y, x)": str(origin), **figures[-1]})
        gaps.append({kind: _gap([s[kind] for s in figures], kind) for kind in figures[0]})
    worst = {kind: max(gap[kind] for gap in gaps) for kind in gaps[0]}
    return Report(
        f"Counts and the tile grid, tiles of up to {tile_px} px",
        [
            Claim("largest difference in all cells of a slide", worst["cells"], "%", at_most=BAR_COUNTS_PERCENT),
            *(
                Claim(f"largest difference in {kind}", worst[kind], "%", at_most=BAR_COUNTS_PERCENT)
                for kind in model.card.classes
            ),
            Claim("largest difference in AP50", worst["AP50"], at_most=BAR_AP50),
        ],
        {"Counts and AP50": rows},
    )


def _counts(detections: Sequence[Detections], classes: Sequence[str]) -> dict[str, float]:
    min_score = CountSettings().min_score
    labels = np.concatenate([d.labels[d.scores >= min_score] for d in detections])
    counts = np.bincount(labels, minlength=len(classes) + 1)[1:].tolist()
    return {"cells": sum(counts)} | dict(zip(classes, counts, strict=True))


def _gap(values: Sequence[float], kind: str) -> float:
    """Largest less smallest: in percent of the mean for counts, in plain AP for AP50."""
    gap = max(values) - min(values)
    return gap if kind == "AP50" else 100 * gap / max(1e-9, float(np.mean(values)))


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="folder of labelled slides")
    command.add_argument("--detector", default="bundled:detector")
    command.add_argument("--slides", nargs="+", default=SLIDES)
    command.add_argument("--tile-px", type=int, default=448)
    command.add_argument("--device", default="auto")
    chosen = command.parse_args()
    model = registry.load(registry.resolve(chosen.detector, "detector")[0], registry.resolve_device(chosen.device))
    show(measure(chosen.data, chosen.slides, model, chosen.tile_px), as_json=chosen.json)


if __name__ == "__main__":
    main()
