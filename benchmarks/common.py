"""What the benchmarks share: a stub detector, slides to count, CPU time, memory, and reports in Markdown or JSON."""

import json
import os
import resource
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from upath import UPath

from wbc.datasets.coco import read_coco
from wbc.datasets.labels import LabelledPicture, red_cell_um_per_px
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.registry import ModelRef
from wbc.storage.images import read_field
from wbc.storage.slides import discover
from wbc.synth.smear import SmearSettings, render_slides
from wbc.training.metrics import average_precision
from wbc.types import Detections, Slide

T = TypeVar("T")
Row = Mapping[str, Any]

DISTINCT_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure that the product stands for, with its bar where it has one."""

    what: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None where there is none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark found: claims, tables by caption (rows with the same keys), remarks."""

    title: str
    claims: Sequence[Claim]
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def parser(description: str) -> ArgumentParser:
    """The command line that all benchmarks share."""
    made = ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def show(report: Report, *, as_json: bool) -> None:
    """Print a report as Markdown or as one JSON object."""
    if as_json:
        print(json.dumps(asdict(report) | {"claims": [asdict(c) | {"met": c.met} for c in report.claims]}, indent=1))
        return
    print(f"# {report.title}\n")
    print(markdown([_claim_row(claim) for claim in report.claims]))
    for caption, rows in report.tables.items():
        print(f"\n## {caption}\n\n{markdown(rows)}")
    for remark in report.remarks:
        print(f"\n{remark}")


def _claim_row(claim: Claim) -> Row:
    bar = f"≤ {claim.at_most:g}" if claim.at_most is not None else f"≥ {claim.at_least:g}" if claim.at_least else ""
    verdict = {True: "met", False: "missed", None: ""}[claim.met]
    return {"figure": claim.what, "value": f"{claim.value:.4g} {claim.unit}".strip(), "bar": bar, "": verdict}


def markdown(rows: Sequence[Row]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [[str(key) for key in rows[0]], ["---"] * len(rows[0])] if rows else []
    lines += [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stub_detector(folder: Path, level: float = 0.45) -> ModelRef:
    """A detector without weights, saved in `folder`: it takes regions darker than `level` for red cells, in no time."""
    card = ModelCard(
        name="stub",
        version="1",
        task="detector",
        builder="dark_regions",
        arguments={"level": level, "smallest_px": 40},
        classes=("rbc",),
        um_per_px=0.2,
        input_px=0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        sha256="",
    )
    registry.save(folder, builders.build(card), card)
    return registry.resolve(str(folder), "detector")[0]


def long_slide(folder: Path, n_fields: int, data: Path | None, height: int = 1920, width: int = 2560) -> Slide:
    """A slide of `n_fields` fields in `folder`, made of a few: those of `data`'s slide-01, else rendered ones.

    Each is shifted by some px more, its far side going round: the same picture twice would be counted once.
    """
    if data is not None:
        pictures, um_per_px = labelled_slide(data, "slide-01")
        files = [picture.path for picture in pictures]
    else:
        settings = SmearSettings(height_px=height, width_px=width)
        render_slides(folder / "rendered", 1, min(n_fields, DISTINCT_FIELDS), 1, settings)
        files, um_per_px = sorted((folder / "rendered" / "slide-01").iterdir()), settings.um_per_px
    slide = folder / f"slide-of-{n_fields}"
    slide.mkdir()
    for i in range(n_fields):
        shifted = ImageChops.offset(Image.open(files[i % len(files)]), 8 * (i // len(files)), 0)
        shifted.save(slide / f"field-{i:04d}.jpg", quality=92)
    return replace(discover(UPath(slide))[0], um_per_px=um_per_px)


def labelled_slide(data: Path, slide_id: str) -> tuple[list[LabelledPicture], float]:
    """A slide's pictures with their true boxes (rbc, platelet, wbc), and its µm per px by its true red cells.

    `data` holds folders of slides, each with its `truth_coco.json`. Raises FileNotFoundError where none has the slide.
    """
    for truth in sorted(data.glob("*/truth_coco.json")):
        if (truth.parent / slide_id).is_dir():
            categories = [c["name"] for c in json.loads(truth.read_text())["categories"]]
            names = {name: name if name in ("rbc", "platelet") else "wbc" for name in categories}
            pictures = [p for p in read_coco(truth.parent, truth, names) if p.path.parent.name == slide_id]
            return pictures, red_cell_um_per_px(pictures)
    raise FileNotFoundError(f"no {slide_id} beside a truth_coco.json in a folder of {data}")


def pixels_of(pictures: Sequence[LabelledPicture]) -> list[NDArray[np.uint8]]:
    """The pictures' pixels, uint8 (H,W,3)."""
    return [read_field(UPath(picture.path)) for picture in pictures]


def score(
    pictures: Sequence[LabelledPicture],
    fields: Sequence[NDArray[np.uint8]],
    found: Sequence[Detections],
    classes: Sequence[str],
) -> dict[str, float]:
    """COCO's figures of what was found in a labelled slide, as `average_precision` names them."""
    truth = [(picture, pixels.shape[1], pixels.shape[0]) for picture, pixels in zip(pictures, fields, strict=True)]
    return average_precision(truth, found, classes)


def cpu_of(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` returns, and the CPU-seconds that this process (all threads) and its ended children spent on it."""
    began = _cpu_seconds()
    result = work()
    return result, _cpu_seconds() - began


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_rss_mb() -> float:
    """The most memory that this process ever held, in MB."""
    # Linux hands getrusage's figure down from the process that started this one; the status file's is its own.
    if sys.platform == "linux":
        status = Path(f"/proc/{os.getpid()}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
