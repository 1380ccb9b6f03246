"""Faster R-CNN with a feature pyramid on any timm backbone (Ren 2015; Lin 2017; Wang 2021, "Faster RCNN model")."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, clip_boxes_to_image

LOWEST_SCORE = 0.02  # nothing below is reported, whatever a count asks for
MOST_DETECTIONS = 100_000  # a bound in name only: torchvision's 100 a picture loses cells in silence


@dataclass(frozen=True, slots=True)
class FasterRCNNSettings:
    """Arguments of `build`; sizes in pixels of the detector's own scale.

    Anchors follow the cells at 0.2 µm/px, two sizes a pyramid level and square, as cells are round: platelets 2-4 µm,
    red cells 6-8 µm, white cells 12-18 µm, megakaryocytes beyond.
    Proposals are limited by `lowest_objectness` rather than by number, which would lose cells in crowded fields;
    `most_proposals` bounds a tile of 1024x1024 px, level by level and in all. Proposals that overlap by `proposal_iou`
    are one: cells hide each other less than things in photographs do. RoIAlign reads `samples_a_bin` squared places in
    each of a region's 7 by 7 bins, which are little larger than a pixel of their map. What is found with at least
    `refined_score` is looked at again, and its box corrected once more.
    """

    backbone: str = "tf_efficientnet_lite0"
    pyramid_channels: int = 128
    head_width: int = 512
    anchor_px: tuple[tuple[int, ...], ...] = ((12, 19), (28, 42), (62, 90), (130, 190))
    proposals_in_training: int = 1000
    most_proposals: int = 12_000
    lowest_objectness: float = 0.5
    proposal_iou: float = 0.5
    samples_a_bin: int = 1
    nms_iou: float = 0.5
    refined_score: float = 0.3


@cache
def has_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 is faster than float32: on a GPU from Ampere on, on a CPU with AVX-512 BF16 or AMX."""
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def half_precision(part: "PyramidBackbone | ProposalHead | BoxHead", device: torch.device) -> torch.autocast:
    """The autocast that `part` runs under on `device`; in training its caller's, unless `part` says otherwise."""
    wanted = part.half_precision
    if wanted is None:
        wanted = torch.is_autocast_enabled(device.type) if part.training else has_bfloat16(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


class PyramidBackbone(nn.Module):
    """A timm feature extractor under a feature pyramid, one map a stride (4, 8, 16, 32).

    Out of training it runs under bfloat16 autocast where that pays and hands float32 on: boxes decoded in bfloat16
    would move by whole pixels. `half_precision` set to False or True overrules.
    """

    half_precision: bool | None = None

    def __init__(self, name: str, channels: int, *, pretrained: bool) -> None:
        super().__init__()
        body: Any = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), pretrained=pretrained)
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), channels)
        self.out_channels = channels

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels float (B,3,H,W) -> maps float32 (B,C,H/s,W/s), keyed "0" (stride 4) to "3" (stride 32)."""
        with half_precision(self, pixels.device):
            maps = self.body(pixels.contiguous(memory_format=torch.channels_last))
            maps = self.fpn(OrderedDict((str(level), m) for level, m in enumerate(maps)))
        return {level: m.float() for level, m in maps.items()}


class AsItIs(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's normalising and batching without its resizing, which `_skip_resize` turns off in training alone."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Picture float32 (3,H,W) and target as they are."""
        return image, target


class ProposalHead(RPNHead):  # type: ignore[misc]
    """Objectness and box deltas of every anchor, in bfloat16 as `PyramidBackbone` is."""

    half_precision: bool | None = None

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps float32 (B,C,H,W) -> objectness (B,A,H,W) and deltas (B,4A,H,W), float32."""
        with half_precision(self, maps[0].device):
            objectness, deltas = super().forward(maps)
        return [o.float() for o in objectness], [d.float() for d in deltas]


class BoxHead(TwoMLPHead):  # type: ignore[misc]
    """Two fully connected layers over a pooled region, in bfloat16 as `PyramidBackbone` is."""

    half_precision: bool | None = None

    def forward(self, pooled: Tensor) -> Tensor:
        """Pooled float32 (R,C,7,7) -> features float32 (R,head_width)."""
        with half_precision(self, pooled.device):
            features: Tensor = super().forward(pooled)
        return features.float()


class RefiningHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads with a second look in eval mode: each box found is pooled and corrected once more.

    Iterative box regression (Gidaris and Komodakis 2015, "Object detection via a multi-region and semantic
    segmentation-aware CNN model"), of boxes already suppressed: far fewer than the proposals. Scores stay.
    """

    refined_score: float = 0.0

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps, proposals (R,4) and (H,W) of each picture -> its boxes, labels and scores; losses in training."""
        results, losses = super().forward(features, proposals, image_shapes, targets)
        sure = [found["scores"] >= self.refined_score for found in results]  # none in training
        boxes = [found["boxes"][s] for found, s in zip(results, sure, strict=True)]
        if not sum(map(len, boxes)):
            return results, losses
        _, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
        decoded = self.box_coder.decode(deltas, boxes).split([len(b) for b in boxes])
        for found, s, candidates, shape in zip(results, sure, decoded, image_shapes, strict=True):
            own = candidates[torch.arange(len(candidates), device=candidates.device), found["labels"][s]]
            found["boxes"][s] = clip_boxes_to_image(own, shape)
        return results, losses


def build(
    n_classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    settings: FasterRCNNSettings = FasterRCNNSettings(),
    *,
    pretrained: bool = False,
) -> FasterRCNN:
    """A torchvision detector for tiles that already have its scale: nothing is resized inside.

    In: a list of float32 (3,H,W) in 0..1, RGB. Out, in eval mode: boxes (N,4) in tile pixels, labels 1..n_classes and
    scores. Trained end to end by torchvision's own losses in train mode. `pretrained` asks timm's hub for ImageNet
    weights.
    """
    backbone = PyramidBackbone(settings.backbone, settings.pyramid_channels, pretrained=pretrained)
    levels = list("0123")
    pool = MultiScaleRoIAlign(
        levels, output_size=7, sampling_ratio=settings.samples_a_bin, canonical_scale=68, canonical_level=4
    )
    anchors = AnchorGenerator(sizes=settings.anchor_px, aspect_ratios=((1.0,),) * len(settings.anchor_px))
    head = BoxHead(settings.pyramid_channels * 7 * 7, settings.head_width)
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=ProposalHead(settings.pyramid_channels, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=settings.proposals_in_training,
        rpn_post_nms_top_n_train=settings.proposals_in_training,
        rpn_pre_nms_top_n_test=settings.most_proposals,
        rpn_post_nms_top_n_test=settings.most_proposals,
        rpn_score_thresh=settings.lowest_objectness,
        rpn_nms_thresh=settings.proposal_iou,
        box_roi_pool=pool,
        box_head=head,
        box_predictor=FastRCNNPredictor(settings.head_width, n_classes + 1),
    )
    model.roi_heads = RefiningHeads(
        pool,
        head,
        model.roi_heads.box_predictor,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=192,
        positive_fraction=0.33,
        bbox_reg_weights=None,
        score_thresh=LOWEST_SCORE,
        nms_thresh=settings.nms_iou,
        detections_per_img=MOST_DETECTIONS,
    )
    model.roi_heads.refined_score = settings.refined_score
    model.transform = AsItIs(min_size=0, max_size=0, image_mean=list(mean), image_std=list(std))
    model.rpn.box_similarity = model.roi_heads.box_similarity = overlap
    return model.to(memory_format=torch.channels_last)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N,M) of boxes (N,4) and (M,4), coordinate by coordinate and in place.

    torchvision's own builds (N,M,2) arrays of 70,000 anchors: half the time of a training step on a CPU.
    """
    width = torch.minimum(a[:, None, 2], b[None, :, 2]).sub_(torch.maximum(a[:, None, 0], b[None, :, 0])).clamp_(min=0)
    height = torch.minimum(a[:, None, 3], b[None, :, 3]).sub_(torch.maximum(a[:, None, 1], b[None, :, 1])).clamp_(min=0)
    shared = width.mul_(height)
    areas = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    union = next(areas)[:, None] + next(areas)[None, :]
    return shared.div_(union.sub_(shared).clamp_(min=1e-9))
