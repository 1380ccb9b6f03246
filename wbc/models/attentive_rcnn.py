"""The proposed detector of Wang 2021: a pyramid with two ways, local search by attention, boxes moved by an agent."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image

from wbc.models.attention import LocalSearch, Looks, SearchSettings
from wbc.models.box_agent import AgentSettings, BoxAgent, See, Start, paired_iou
from wbc.models.faster_rcnn import FasterRCNN, FasterRCNNSettings, RefiningHeads, assembled
from wbc.models.pyramid import LEVELS, PyramidBackbone, TwoWayBackbone


@dataclass(frozen=True, slots=True)
class AttentiveRCNNSettings:
    """Arguments of `build`. What is not there is not in the model: a table `attention`, a table `agent`.

    `bottom_up` adds the pyramid's second way up. Without all three it is `faster_rcnn`, whose settings are `detector`.
    """

    detector: FasterRCNNSettings = field(default_factory=FasterRCNNSettings)
    bottom_up: bool = True
    attention: SearchSettings | None = None
    agent: AgentSettings | None = None

    def __post_init__(self) -> None:
        if len(self.detector.anchor_px) != len(LEVELS):
            raise ValueError(f"detector.anchor_px has {len(self.detector.anchor_px)} lists, the pyramid four levels")


@dataclass(frozen=True, slots=True)
class Scene:
    """The pictures of a batch as the heads see them: maps by level, (H,W) of each, what the search saw."""

    features: dict[str, Tensor]
    image_shapes: list[tuple[int, int]]
    looks: Looks | None


class AttentiveHeads(RefiningHeads):
    """The two branches, over proposals of the regions that the search pinpoints; then the agent.

    Boxes of the linear regression are where the agent begins ("learning linear transforms for bounding box
    regression, a reinforcement learning agent … regresses the boxes more broadly"), in training those of regions on
    cells. "The result of the classification is used only at the terminal step": where a box comes to rest it is
    classified anew, and the score of its class is that one's. Its class stays, since classes were suppressed one by
    one. Without an agent, boxes get the second look of `RefiningHeads`.
    """

    def __init__(self, n_classes: int, settings: AttentiveRCNNSettings) -> None:
        super().__init__(n_classes, settings.detector)
        channels, attention = settings.detector.pyramid_channels, settings.attention
        self.search = None if attention is None else LocalSearch(channels, attention, stride=32)
        self.know = None if attention is None else nn.Linear(attention.hidden, settings.detector.head_width)
        self.agent = None if settings.agent is None else BoxAgent(channels, settings.agent)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Maps, proposals (R,4) and (H,W) of each picture -> its boxes, labels and scores; losses in training."""
        looks = None if self.search is None else self.search(features[LEVELS[-1]])
        scene = Scene(features, image_shapes, looks)
        if looks is not None:
            proposals = looks.local(proposals)
        if targets is not None:
            return [], self._losses(scene, proposals, targets)
        _, logits, deltas = self._branches(scene, proposals)
        found = zip(*self.postprocess_detections(logits, deltas, proposals, image_shapes), strict=True)
        detections = [{"boxes": b, "scores": s, "labels": n} for b, s, n in found]
        if self.agent is None:
            self._look_again(detections, features, image_shapes)
        else:
            self._regress(self.agent, detections, scene)
        return detections, {}

    def _branches(self, scene: Scene, regions: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What is pooled from regions, and what the two branches say of it: class logits and box deltas."""
        pooled = self.box_roi_pool(scene.features, regions, scene.image_shapes)
        logits, deltas = self.box_predictor(self._described(pooled, regions, scene.looks))
        return pooled, logits, deltas

    def _described(self, pooled: Tensor, regions: list[Tensor], looks: Looks | None) -> Tensor:
        """What the branches read of each region: its own features, and the state of the look at it."""
        own: Tensor = self.box_head(pooled)
        return own if looks is None or self.know is None else own + self.know(looks.states_at(regions))

    def _losses(self, scene: Scene, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        regions, matched, labels, wanted = self.select_training_samples(proposals, targets)
        _, logits, deltas = self._branches(scene, regions)
        of_class, of_box = fastrcnn_loss(logits, deltas, labels, wanted)
        losses = {"loss_classifier": of_class, "loss_box_reg": of_box}
        if self.agent is None:
            return losses
        boxes = self._decoded(deltas, regions, labels, scene)
        starts = [
            _first_by_iou(b, t["boxes"].to(b), m, n, self.agent.settings.boxes)
            for b, t, m, n in zip(boxes, targets, matched, labels, strict=True)
        ]
        see = self._sight(scene, [len(s.boxes) for s in starts])
        return losses | self.agent.learn(Start.joined(starts), see)

    def _decoded(self, deltas: Tensor, regions: list[Tensor], labels: list[Tensor], scene: Scene) -> tuple[Tensor, ...]:
        """The boxes (R,4) of each picture that the regression branch makes of regions, as of their classes."""
        of_all = self.box_coder.decode(deltas.detach(), regions)
        own = of_all[torch.arange(len(of_all), device=of_all.device), torch.cat(labels)]
        parts = torch.split(own, [len(r) for r in regions])
        return tuple(clip_boxes_to_image(b, shape) for b, shape in zip(parts, scene.image_shapes, strict=True))

    def _sight(self, scene: Scene, counts: list[int]) -> See:
        """What an agent sees of boxes, of which the first of `counts` lie in the first picture, and so on."""

        def see(boxes: Tensor) -> tuple[Tensor, Tensor]:
            regions = list(torch.split(boxes, counts))
            pooled = self.box_roi_pool(scene.features, regions, scene.image_shapes)
            with torch.no_grad():
                logits = self.box_predictor(self._described(pooled, regions, scene.looks))[0]
            return pooled, logits

        return see

    def _regress(self, agent: BoxAgent, detections: list[dict[str, Tensor]], scene: Scene) -> None:
        """Let the agent move the boxes that are sure enough, and score them where they come to rest, in place."""
        sure = [d["scores"] >= self.refined_score for d in detections]
        counts = [int(s.sum()) for s in sure]
        if not sum(counts):
            return
        see = self._sight(scene, counts)
        rest = agent.act(torch.cat([d["boxes"][s] for d, s in zip(detections, sure, strict=True)]), see)
        parts = [
            clip_boxes_to_image(b, shape)
            for b, shape in zip(torch.split(rest, counts), scene.image_shapes, strict=True)
        ]
        scores = torch.split(see(torch.cat(parts))[1].softmax(1), counts)
        for d, s, boxes, own in zip(detections, sure, parts, scores, strict=True):
            d["boxes"][s] = boxes
            d["scores"][s] = own.gather(1, d["labels"][s][:, None])[:, 0]


def _first_by_iou(boxes: Tensor, true_boxes: Tensor, matched: Tensor, labels: Tensor, most: int) -> Start:
    """The `most` boxes on cells that rank first by IoU; box i of class `labels[i]` is meant for `matched[i]`."""
    on_cells = (labels > 0).nonzero()[:, 0]
    iou = paired_iou(boxes[on_cells], true_boxes[matched[on_cells]])
    best = on_cells[iou.argsort(descending=True, stable=True)[:most]]
    return Start(boxes[best], true_boxes[matched[best]], labels[best])


def build(
    n_classes: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    settings: AttentiveRCNNSettings = AttentiveRCNNSettings(),
) -> FasterRCNN:
    """A detector that is called as `faster_rcnn.build`'s is."""
    pyramid = TwoWayBackbone if settings.bottom_up else PyramidBackbone
    backbone = pyramid(
        settings.detector.backbone, settings.detector.pyramid_channels, settings.detector.expanded_channels
    )
    return assembled(backbone, AttentiveHeads(n_classes, settings), mean, std, settings.detector)
