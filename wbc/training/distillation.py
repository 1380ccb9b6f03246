"""A detector that learns from another one's answers beside its labels: knowledge distillation.

Hinton 2015, "Distilling the Knowledge in a Neural Network"; for Faster R-CNN Chen 2017, "Learning Efficient Object
Detection Models with Knowledge Distillation", of which this takes the answers of both heads and leaves the hints. The
teacher sees the same pictures and the same regions; it says of every anchor how likely a cell is and where its corners
lie, of every region its class and its box. What matters most is weighed by the teacher's own word: corners as much as
it takes their anchor or region for a cell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wbc.models.cards import ModelCard
from wbc.models.faster_rcnn import FasterRCNN, RefiningHeads
from wbc.models.proposals import anchor_rows
from wbc.models.registry import LoadedModel


@dataclass(frozen=True, slots=True)
class DistillationSettings:
    """`teacher` is a detector of the same classes, anchors and scale; `weight` is its answers' beside the labels'."""

    teacher: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"weight is {self.weight}: a teacher's answers weigh more than nothing")


@dataclass(slots=True)
class Answers:
    """What a detector says of a batch's anchors and of regions.

    `objectness` logits (B,N) and `corners` deltas (B,N,4) of all anchors; `classes` logits (R,C+1), the background's
    first, and `boxes` deltas (R,C+1,4) of the regions.
    """

    objectness: Tensor
    corners: Tensor
    classes: Tensor
    boxes: Tensor


@dataclass(slots=True)
class Overheard:
    """What passed through a detector's parts in a training step."""

    pixels: Any = None
    proposals: Any = None
    regions: Any = None
    boxes: Any = None

    @property
    def answers(self) -> Answers:
        """The detector's answers."""
        return _answers(self.proposals, self.boxes)


class Distillation:
    """The losses of a `Lesson` for a Faster R-CNN: those by the labels, and how far it is from a teacher's answers.

    Raises ValueError where the teacher's answers are of other classes, anchors or pixels than the card's.
    """

    def __init__(self, teacher: LoadedModel, weight: float, card: ModelCard, model: nn.Module) -> None:
        self.teacher: Any = teacher.module.eval().requires_grad_(False)
        self.weight = weight
        _check(teacher, card, model)

    def __call__(self, model: nn.Module, pixels: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses by name for pictures float32 (3,H,W) in 0..1 and their targets."""
        within = model.module if isinstance(model, DistributedDataParallel) else model
        with overheard(within) as said:
            losses: dict[str, Tensor] = model(pixels, targets)
        return losses | {name: self.weight * loss for name, loss in apart(said.answers, self._answers(said)).items()}

    @torch.no_grad()
    def _answers(self, said: Overheard) -> Answers:
        """The teacher's answers on the same pictures and regions."""
        teacher = self.teacher.to(said.pixels.device)
        maps = teacher.backbone(said.pixels)
        proposals = teacher.rpn.head(list(maps.values()))
        heads = teacher.roi_heads
        return _answers(proposals, heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, *said.regions))))


def apart(own: Answers, wanted: Answers) -> dict[str, Tensor]:
    """How far a detector's answers are from those that are wanted, as four losses; nothing where they are the same.

    Of anchors a sum by as many as there are cells among them in the teacher's eyes, of regions a mean; of chances the
    Kullback-Leibler divergence, of deltas the distance, weighed by the teacher's chance that there is a cell.
    """
    cell = wanted.objectness.sigmoid()
    n_cells = cell.sum().clamp(min=1.0)
    chances = wanted.classes.softmax(-1)
    n_regions = chances[:, 1:].sum().clamp(min=1.0)
    surprise = F.binary_cross_entropy_with_logits(own.objectness, cell, reduction="sum")
    least = F.binary_cross_entropy_with_logits(wanted.objectness, cell, reduction="sum")
    divergence = F.kl_div(own.classes.log_softmax(-1), chances, reduction="sum")
    corners = (cell * (own.corners - wanted.corners).abs().sum(-1)).sum()
    boxes = (chances[:, 1:] * (own.boxes - wanted.boxes)[:, 1:].abs().sum(-1)).sum()
    return {
        "teacher_objectness": (surprise - least) / n_cells,
        "teacher_corners": corners / n_cells,
        "teacher_classes": divergence / max(1, len(chances)),
        "teacher_boxes": boxes / n_regions,
    }


@contextmanager
def overheard(model: Any) -> Iterator[Overheard]:
    """What passes through a Faster R-CNN's backbone, proposal head and box head within the block."""
    said = Overheard()

    def backbone(_: nn.Module, given: tuple[Tensor], __: Any) -> None:
        said.pixels = given[0]

    def proposal_head(_: nn.Module, __: Any, made: Any) -> None:
        said.proposals = made

    def pooling(_: nn.Module, given: tuple[Any, ...], __: Any) -> None:
        said.regions = given[1:]

    def predictor(_: nn.Module, __: Any, made: Any) -> None:
        said.boxes = made

    heads = model.roi_heads
    listened = (
        (model.backbone, backbone),
        (model.rpn.head, proposal_head),
        (heads.box_roi_pool, pooling),
        (heads.box_predictor, predictor),
    )
    handles = [part.register_forward_hook(hook) for part, hook in listened]
    try:
        yield said
    finally:
        for handle in handles:
            handle.remove()


def _answers(proposals: Any, boxes: Any) -> Answers:
    objectness, corners = proposals
    classes, deltas = (t.float() for t in boxes)
    return Answers(
        torch.cat([anchor_rows(level, 1)[..., 0] for level in objectness], 1).float(),
        torch.cat([anchor_rows(level, 4) for level in corners], 1).float(),
        classes,
        deltas.unflatten(-1, (-1, 4)),
    )


def _check(teacher: LoadedModel, card: ModelCard, model: nn.Module) -> None:
    own, other = card, teacher.card
    if not (_has_plain_heads(model) and _has_plain_heads(teacher.module)):
        raise ValueError(f"a faster_rcnn learns from a faster_rcnn, not {own.builder} from {other.builder}")
    for name, one, two in (
        ("classes", list(own.classes), list(other.classes)),
        ("µm per px", own.um_per_px, other.um_per_px),
        ("mean and spread of pixels", (own.mean, own.std), (other.mean, other.std)),
        ("anchors", _anchors(model), _anchors(teacher.module)),
    ):
        if one != two:
            raise ValueError(f"the teacher {other.name!r} has other {name}: {two}, not {one}")


def _has_plain_heads(module: nn.Module) -> bool:
    return isinstance(module, FasterRCNN) and type(module.roi_heads) is RefiningHeads


def _anchors(module: Any) -> Any:
    return module.rpn.anchor_generator.sizes
