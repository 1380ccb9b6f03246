"""Where cells may be, from what the proposal head says of each anchor: only the sure ones become boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes


@dataclass(frozen=True, slots=True)
class ProposalLimits:
    """The lowest objectness, the most proposals (of a level, and in all), by what overlap two are one; sides in px."""

    lowest: float
    most: int
    overlap: float
    smallest_px: float


def sure_proposals(
    outputs: tuple[Sequence[Tensor], Sequence[Tensor]],
    anchors: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    coder: BoxCoder,
    limits: ProposalLimits,
) -> list[Tensor]:
    """The proposals float32 (P,4) of each picture, the surest first: torchvision's, in a third of the time.

    `outputs` are, level by level, logits (B,A,H,W) and deltas (B,4·A,H,W); `anchors` (N,4) of each picture follow the
    levels; `shapes` are the pictures' (H,W). torchvision decodes all anchors, 100,000 a tile, and then asks which are
    sure; here it is asked first. Ties apart, what is kept is the same.
    """
    logits = [anchor_rows(level, 1)[..., 0].float() for level in outputs[0]]
    deltas = [anchor_rows(level, 4) for level in outputs[1]]
    starts = torch.tensor([0, *(level.shape[1] for level in logits)]).cumsum(0).tolist()
    found = []
    for picture, shape in enumerate(shapes):
        places = [_surest(level[picture], limits) for level in logits]
        scores = torch.cat([level[picture, at] for level, at in zip(logits, places, strict=True)])
        moves = torch.cat([level[picture, at] for level, at in zip(deltas, places, strict=True)]).float()
        own = torch.cat([at + start for at, start in zip(places, starts, strict=False)])
        levels = torch.cat([torch.full_like(at, level) for level, at in enumerate(places)])
        boxes = clip_boxes_to_image(coder.decode_single(moves, anchors[picture][own]), shape)
        large = remove_small_boxes(boxes, limits.smallest_px)
        boxes, scores, levels = boxes[large], scores[large].sigmoid(), levels[large]
        found.append(boxes[batched_nms(boxes, scores, levels, limits.overlap)[: limits.most]])
    return found


def anchor_rows(level: Tensor, values: int) -> Tensor:
    """A level's outputs (B,A·values,H,W) anchor by anchor: (B,H·W·A,values)."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, values)


def _surest(logits: Tensor, limits: ProposalLimits) -> Tensor:
    """Which of a level's anchors are sure enough, the surest `most` of them where there are more."""
    sure = torch.nonzero(logits.sigmoid() >= limits.lowest)[:, 0]
    return sure if len(sure) <= limits.most else sure[logits[sure].topk(limits.most).indices]
