"""Ways to run the detector: milliseconds a field and AP on one labelled slide, each against plain float32.

Variants are made on copies of the model and take turns, round by round, so that a machine's other work meets them all.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import MultiScaleRoIAlign

from benchmarks.common import Claim, Report, Row, labelled_slide, parser, pixels_of, score, show
from wbc.cells.detect import detect
from wbc.cells.tiles import TileSettings
from wbc.datasets.labels import LabelledPicture
from wbc.models import registry
from wbc.models.registry import LoadedModel

LOWEST_SCORE = 0.05
MOST_AP_LOST = 0.005


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the detector: what is done to a copy of it, at what scale and in what tiles it looks."""

    name: str
    changes: Sequence[Callable[[Any], None]] = ()
    um_per_px: float | None = None
    tiles: TileSettings = field(default_factory=TileSettings)

    def of(self, model: LoadedModel) -> LoadedModel:
        """The model run this way, a copy."""
        module = copy.deepcopy(model.module)
        for change in self.changes:
            change(module)
        card = replace(model.card, um_per_px=self.um_per_px or model.card.um_per_px)
        return LoadedModel(module, card, model.device)


class Contiguous(nn.Module):
    """A module that gets its input plane by plane, as torch lays pictures out unasked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.to(memory_format=torch.contiguous_format)

    def forward(self, pixels: Tensor) -> Any:
        """The module's output for `pixels` (B,C,H,W)."""
        return self.inner(pixels.contiguous())


def contiguous(module: Any) -> None:
    """Every convolution plane by plane."""
    module.to(memory_format=torch.contiguous_format)
    module.backbone.body = Contiguous(module.backbone.body)


def precision(*, backbone: bool, box_head: bool, proposal_head: bool) -> Callable[[Any], None]:
    """bfloat16 or float32 in backbone and pyramid, in the box head and in the proposal head."""

    def change(module: Any) -> None:
        module.backbone.half_precision = backbone
        module.roi_heads.box_head.half_precision = box_head
        module.rpn.head.half_precision = proposal_head

    return change


def fold_batch_norms(module: Any) -> None:
    """Each batch norm of the backbone into the convolution before it."""
    for parent in list(module.backbone.body.modules()):
        name, convolution = "", None
        for own, child in list(parent.named_children()):
            if isinstance(child, BatchNormAct2d) and convolution is not None:
                parent.register_module(name, fuse_conv_bn_eval(convolution, child))
                parent.register_module(own, child.act)
            name, convolution = own, child if isinstance(child, nn.Conv2d) else None


def compiled(module: Any) -> None:
    """torch.compile of backbone and pyramid."""
    module.backbone = torch.compile(module.backbone)


def most_proposals(limit: int) -> Callable[[Any], None]:
    """At most `limit` proposals a tile."""

    def change(module: Any) -> None:
        module.rpn._pre_nms_top_n["testing"] = module.rpn._post_nms_top_n["testing"] = limit

    return change


def lowest_objectness(limit: float) -> Callable[[Any], None]:
    """Proposals of at least this objectness."""

    def change(module: Any) -> None:
        module.rpn.score_thresh = limit

    return change


def refined_score(limit: float) -> Callable[[Any], None]:
    """What is found with at least this score is looked at twice."""

    def change(module: Any) -> None:
        module.roi_heads.refined_score = limit

    return change


def proposal_iou(limit: float) -> Callable[[Any], None]:
    """Proposals that overlap by more than this are one."""

    def change(module: Any) -> None:
        module.rpn.nms_thresh = limit

    return change


def samples_a_bin(side: int) -> Callable[[Any], None]:
    """RoIAlign reads `side` by `side` places in each of its 7 by 7 bins."""

    def change(module: Any) -> None:
        module.roi_heads.box_roi_pool.sampling_ratio = side

    return change


def kernel_of_torchvision(module: Any) -> None:
    """RoIAlign by torchvision's kernel."""
    shipped = module.roi_heads.box_roi_pool
    module.roi_heads.box_roi_pool = MultiScaleRoIAlign(
        shipped.featmap_names,
        shipped.output_size,
        shipped.sampling_ratio,
        canonical_scale=shipped.canonical_scale,
        canonical_level=shipped.canonical_level,
    )


def variants(um_per_px: float) -> list[Variant]:
    """All ways that are compared; the first is what the others are measured against."""
    single = precision(backbone=False, box_head=False, proposal_head=False)
    half = precision(backbone=True, box_head=True, proposal_head=True)
    return [
        Variant("float32, contiguous", (single, contiguous)),
        Variant("float32, channels_last", (single,)),
        Variant("float32, batch norms folded", (single, fold_batch_norms)),
        Variant("compiled in float32", (single, compiled)),
        Variant("bf16 backbone", (precision(backbone=True, box_head=False, proposal_head=False),)),
        Variant("bf16 backbone, box head", (precision(backbone=True, box_head=True, proposal_head=False),)),
        Variant("bf16 backbone, box head, proposal head", (half,)),
        Variant("compiled in bfloat16", (half, compiled)),
        Variant("as shipped"),
        Variant("as shipped; torchvision's RoIAlign", (kernel_of_torchvision,)),
        Variant("as shipped; batch norms folded", (fold_batch_norms,)),
        *(Variant(f"as shipped; objectness ≥ {v}", (lowest_objectness(v),)) for v in (0.02, 0.1, 0.2, 0.3, 0.5, 0.7)),
        *(Variant(f"as shipped; second look from {v}", (refined_score(v),)) for v in (0.1, 0.3, 0.5)),
        Variant("as shipped; no second look", (refined_score(2.0),)),
        *(Variant(f"as shipped; ≤ {v} proposals", (most_proposals(v),)) for v in (500, 1000, 2000)),
        *(Variant(f"as shipped; proposals' IoU ≤ {v}", (proposal_iou(v),)) for v in (0.4, 0.5, 0.6, 0.7)),
        *(Variant(f"as shipped; {v} samples a bin", (samples_a_bin(v),)) for v in (1, 2)),
        *(Variant(f"as shipped; {v} µm/px", um_per_px=v) for v in (0.26, 0.23, 0.2, 0.17) if v != um_per_px),
        *(Variant(f"as shipped; tiles ≤ {v} px", tiles=TileSettings(tile_px=v)) for v in (384, 640)),
    ]


@dataclass(slots=True)
class Trial:
    """A variant under way: its model, the seconds of each round, its AP and AP50, or why it cannot run here."""

    variant: Variant
    model: LoadedModel
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    failure: str = ""


def measure(
    pictures: Sequence[LabelledPicture], um_per_px: float, model: LoadedModel, chosen: Sequence[Variant], rounds: int
) -> Report:
    """Every variant once to warm up and to score, then in turns; medians, in ratio to the first."""
    fields = pixels_of(pictures)
    trials = [Trial(variant, variant.of(model)) for variant in chosen]
    for trial in trials:
        try:
            detections = [_look(pixels, um_per_px, trial) for pixels in fields]
        except Exception as error:  # an engine that this machine lacks: each has its own way to say so
            trial.failure = f"{type(error).__name__}: {error}".splitlines()[0][:120]
            continue
        trial.figures = score(pictures, fields, detections, model.card.classes)
    running = [trial for trial in trials if not trial.failure]
    for _ in range(rounds):
        for trial in running:
            wall, cpu = time.perf_counter(), time.process_time()
            for pixels in fields:
                _look(pixels, um_per_px, trial)
            trial.wall.append((time.perf_counter() - wall) / len(fields))
            trial.cpu.append((time.process_time() - cpu) / len(fields))
    return _report(trials, running, model.device)


def _look(pixels: NDArray[np.uint8], um_per_px: float, trial: Trial) -> Any:
    # Boxes come back as numpy's arrays, so a GPU is done when this returns.
    return detect([pixels], trial.model, um_per_px, LOWEST_SCORE, trial.variant.tiles)[0]


def _report(trials: Sequence[Trial], running: Sequence[Trial], device: torch.device) -> Report:
    base = running[0]

    def ratio(trial: Trial) -> float:
        # On a busy CPU the time on the clock tells more of its other work than of the model.
        ours, first = (trial.cpu, base.cpu) if device.type == "cpu" else (trial.wall, base.wall)
        return median(o / f for o, f in zip(ours, first, strict=True))

    rows: list[Row] = [
        {
            "variant": t.variant.name,
            "ms a field": round(1e3 * median(t.wall), 1) if t.wall else "–",
            "CPU ms a field": round(1e3 * median(t.cpu), 1) if t.cpu else "–",
            "ratio": round(ratio(t), 3) if t.wall else "–",
            "AP": round(t.figures["AP"], 4) if t.figures else t.failure,
            "AP50": round(t.figures["AP50"], 4) if t.figures else "–",
            "AP gained": round(t.figures["AP"] - base.figures["AP"], 4) if t.figures else "–",
        }
        for t in trials
    ]
    sound = [t for t in running if t.figures["AP"] >= base.figures["AP"] - MOST_AP_LOST]
    best = min(sound, key=ratio)
    what = f"fastest that loses no more than {MOST_AP_LOST} AP: {best.variant.name}; its time, {base.variant.name} = 1"
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return Report(
        f"The detector's own speed on {device.type}, {threads}", [Claim(what, ratio(best))], {"Variants": rows}
    )


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="folder of labelled slides")
    command.add_argument("--slide", default="slide-04")
    command.add_argument("--detector", default="bundled:detector")
    command.add_argument("--device", default="auto")
    command.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument(
        "--only", nargs="+", default=[""], help="variants whose name holds one of these; the first is always run"
    )
    chosen = command.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    model = registry.load(registry.resolve(chosen.detector, "detector")[0], registry.resolve_device(chosen.device))
    pictures, um_per_px = labelled_slide(chosen.data, chosen.slide)
    first, *others = variants(model.card.um_per_px)
    some = [first, *(v for v in others if any(part in v.name for part in chosen.only))]
    show(measure(pictures, um_per_px, model, some, chosen.rounds), as_json=chosen.json)


if __name__ == "__main__":
    main()
