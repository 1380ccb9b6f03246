"""Faster R-CNN with a feature pyramid on any timm backbone (Ren 2015; Lin 2017; Wang 2021, "Faster RCNN model")."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import Conv2dNormActivation, clip_boxes_to_image

from wbc.models.bfloat16 import InBfloat16
from wbc.models.proposals import ProposalLimits, sure_proposals
from wbc.models.pyramid import PyramidBackbone
from wbc.models.roi_align import PyramidRoIAlign

OVERLAPS_AT_ONCE = 1024  # boxes of which `overlap` is worked out at once on a CPU


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """Which of a picture's anchors and regions the losses are made of.

    What overlaps a true box by at least `*_cell_iou` is that cell, what overlaps none by `*_ground_iou` is ground.
    `anchors` and `regions` are how many are drawn, of which up to the fraction `*_cells` lie on cells.
    """

    anchor_cell_iou: float = 0.7
    anchor_ground_iou: float = 0.3
    anchors: int = 256
    anchor_cells: float = 0.5
    region_cell_iou: float = 0.5
    region_ground_iou: float = 0.5
    regions: int = 192
    region_cells: float = 0.33


@dataclass(frozen=True, slots=True)
class FasterRCNNSettings:
    """Arguments of `build`; sizes in pixels of the detector's own scale.

    Anchors follow the cells at 0.2 µm/px, two sizes a pyramid level and square, as cells are round: platelets 2-4 µm,
    red cells 6-8 µm, white cells 12-18 µm, megakaryocytes beyond. `expanded_channels` are those of each inverted
    residual of the backbone, none: as timm has them. `proposal_channels` are those that the proposal head makes of a
    map's, 0: as many.
    Proposals are limited by `lowest_objectness` rather than by number, which would lose cells in crowded fields;
    `most_proposals` bounds a tile of 1024x1024 px, level by level and in all. Proposals that overlap by `proposal_iou`
    are one: cells hide each other less than things in photographs do. RoIAlign reads `samples_a_bin` squared places in
    each of a region's `bins` by `bins` bins, which are little larger than a pixel of their map; a region of
    `canonical_px` a side is read from the pyramid's `canonical_level` (4 is stride 16).
    Boxes of a class that overlap by `nms_iou` are one. What is found with at least `refined_score` is looked at again,
    and its box corrected once more. Nothing below `lowest_score` is reported, whatever a count asks for;
    `most_detections` is a bound in name only: torchvision's 100 a picture loses cells in silence.
    """

    backbone: str = "tf_efficientnet_lite0"
    pyramid_channels: int = 128
    proposal_channels: int = 0
    head_width: int = 512
    expanded_channels: tuple[int, ...] = ()
    anchor_px: tuple[tuple[int, ...], ...] = ((12, 19), (28, 42), (62, 90), (130, 190))
    proposals_in_training: int = 1000
    most_proposals: int = 12_000
    lowest_objectness: float = 0.5
    proposal_iou: float = 0.5
    bins: int = 7
    samples_a_bin: int = 1
    canonical_px: int = 68
    canonical_level: int = 4
    nms_iou: float = 0.5
    refined_score: float = 0.3
    lowest_score: float = 0.02
    most_detections: int = 100_000
    samples: SampleSettings = SampleSettings()


class ProposalHead(InBfloat16, RPNHead):  # type: ignore[misc]
    """Objectness and box deltas of every anchor by hidden channels, in bfloat16 where that pays."""

    def __init__(self, settings: FasterRCNNSettings, n_anchors: int) -> None:
        channels, hidden = settings.pyramid_channels, settings.proposal_channels or settings.pyramid_channels
        super().__init__(hidden, n_anchors)
        if hidden != channels:
            convolution = Conv2dNormActivation(channels, hidden, kernel_size=3, norm_layer=None)
            nn.init.normal_(convolution[0].weight, std=0.01)  # torchvision's
            nn.init.zeros_(convolution[0].bias)
            self.conv = nn.Sequential(convolution)


class BoxHead(InBfloat16, TwoMLPHead):  # type: ignore[misc]
    """Two fully connected layers over a pooled region, in bfloat16 where that pays."""


class UnresizedTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's normalising and batching without its resizing, which `_skip_resize` turns off in training alone."""

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__(min_size=0, max_size=0, image_mean=list(mean), image_std=list(std))

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Picture float32 (3,H,W) and target as they are."""
        return image, target


class ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """Where cells may be: torchvision's proposals with our `overlap`."""

    def __init__(self, settings: FasterRCNNSettings) -> None:
        anchors = AnchorGenerator(settings.anchor_px, ((1.0,),) * len(settings.anchor_px))
        limits = {"training": settings.proposals_in_training, "testing": settings.most_proposals}
        super().__init__(
            anchors,
            ProposalHead(settings, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=settings.samples.anchor_cell_iou,
            bg_iou_thresh=settings.samples.anchor_ground_iou,
            batch_size_per_image=settings.samples.anchors,
            positive_fraction=settings.samples.anchor_cells,
            pre_nms_top_n=dict(limits),
            post_nms_top_n=dict(limits),
            nms_thresh=settings.proposal_iou,
            score_thresh=settings.lowest_objectness,
        )
        self.box_similarity = overlap

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Pictures and their maps by level -> the proposals (P,4) of each; losses in training."""
        if self.training:
            proposals: tuple[list[Tensor], dict[str, Tensor]] = super().forward(images, features, targets)
            return proposals
        maps = list(features.values())
        return self.propose(images, maps, self.head(maps)), {}

    def propose(
        self, images: ImageList, maps: list[Tensor], outputs: tuple[list[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """The proposals (P,4) of each picture from what the head says of its maps."""
        limits = ProposalLimits(self.score_thresh, self.post_nms_top_n(), self.nms_thresh, self.min_size)
        return sure_proposals(outputs, self.anchor_generator(images, maps), images.image_sizes, self.box_coder, limits)


class RefiningHeads(RoIHeads):  # type: ignore[misc]
    """What each proposal is: torchvision's heads with our `overlap`, and a second look at each box found.

    Iterative box regression (Gidaris and Komodakis 2015, "Object detection via a multi-region and semantic
    segmentation-aware CNN model"), of boxes already suppressed: far fewer than the proposals. Scores stay.
    """

    def __init__(self, n_classes: int, settings: FasterRCNNSettings) -> None:
        super().__init__(
            PyramidRoIAlign(
                [str(level) for level in range(len(settings.anchor_px))],
                output_size=settings.bins,
                sampling_ratio=settings.samples_a_bin,
                canonical_scale=settings.canonical_px,
                canonical_level=settings.canonical_level,
            ),
            BoxHead(settings.pyramid_channels * settings.bins**2, settings.head_width),
            FastRCNNPredictor(settings.head_width, n_classes + 1),
            fg_iou_thresh=settings.samples.region_cell_iou,
            bg_iou_thresh=settings.samples.region_ground_iou,
            batch_size_per_image=settings.samples.regions,
            positive_fraction=settings.samples.region_cells,
            bbox_reg_weights=None,
            score_thresh=settings.lowest_score,
            nms_thresh=settings.nms_iou,
            detections_per_img=settings.most_detections,
        )
        self.box_similarity = overlap
        self.refined_score = settings.refined_score

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps, proposals (R,4) and (H,W) of each picture -> its boxes, labels and scores; losses in training."""
        detections, losses = super().forward(features, proposals, image_shapes, targets)
        if not self.training:
            self._look_again(detections, features, image_shapes)
        return detections, losses

    def _look_again(
        self, detections: list[dict[str, Tensor]], features: dict[str, Tensor], image_shapes: list[tuple[int, int]]
    ) -> None:
        """Pool and correct the boxes that are sure enough once more, in place."""
        sure = [d["scores"] >= self.refined_score for d in detections]
        boxes = [d["boxes"][s] for d, s in zip(detections, sure, strict=True)]
        if not sum(map(len, boxes)):
            return
        _, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, image_shapes)))
        decoded = self.box_coder.decode(deltas, boxes).split([len(b) for b in boxes])
        for d, s, candidates, shape in zip(detections, sure, decoded, image_shapes, strict=True):
            own = candidates[torch.arange(len(candidates), device=candidates.device), d["labels"][s]]
            d["boxes"][s] = clip_boxes_to_image(own, shape)


class FasterRCNN(GeneralizedRCNN):  # type: ignore[misc]
    """Transform, backbone, proposals, heads, as torchvision runs them; a `TrainableDetector`."""

    @property
    def body(self) -> nn.Module:
        """The timm feature extractor."""
        body: nn.Module = self.backbone.body
        return body

    @property
    def class_bias(self) -> Tensor:
        """The biases (C,) of the classes' logits; the background's, which comes first, is not among them."""
        bias: Tensor = self.roi_heads.box_predictor.cls_score.bias
        return bias[1:]


def build(
    n_classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    settings: FasterRCNNSettings = FasterRCNNSettings(),
) -> FasterRCNN:
    """A torchvision detector for tiles that already have its scale: nothing is resized inside.

    In: a list of float32 (3,H,W) in 0..1, RGB. Out, in eval mode: boxes (N,4) in tile pixels, labels 1..n_classes and
    scores. Trained end to end by torchvision's own losses in train mode.
    """
    backbone = PyramidBackbone(settings.backbone, settings.pyramid_channels, settings.expanded_channels)
    return assembled(backbone, RefiningHeads(n_classes, settings), mean, std, settings)


def assembled(
    backbone: nn.Module,
    heads: RefiningHeads,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    settings: FasterRCNNSettings,
) -> FasterRCNN:
    """A detector of a backbone, which gives maps by level ("0", "1"...), and heads; its proposals by `settings`."""
    transform = UnresizedTransform(mean, std)
    model: FasterRCNN = FasterRCNN(
        backbone=backbone, rpn=ProposalNetwork(settings), roi_heads=heads, transform=transform
    )
    model.to(memory_format=torch.channels_last)
    return model


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (N,M) of boxes (N,4) and (M,4), coordinate by coordinate and in place.

    torchvision's own builds (N,M,2) arrays of 70,000 anchors: half the time of a training step on a CPU. There so many
    of `b` at once are worked out as its caches hold.
    """
    at_once = OVERLAPS_AT_ONCE if b.device.type == "cpu" else max(1, len(b))
    rows = a.T.contiguous()[..., None]
    return torch.cat([_overlap(rows, part) for part in torch.split(b.T.contiguous(), at_once, 1)], 1)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """`overlap` of coordinates (4,N,1) and (4,M)."""
    left, top, right, bottom = zip(a, b, strict=True)
    width = torch.minimum(*right).sub_(torch.maximum(*left)).clamp_(min=0)
    height = torch.minimum(*bottom).sub_(torch.maximum(*top)).clamp_(min=0)
    shared = width.mul_(height)
    union = _areas(a) + _areas(b)
    return shared.div_(union.sub_(shared).clamp_(min=1e-9))


def _areas(coordinates: Tensor) -> Tensor:
    left, top, right, bottom = coordinates.unbind()
    return (right - left) * (bottom - top)
