"""A detector with a thinner pyramid that is as near to a wider one as it can be."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wbc.models import builders
from wbc.models.bfloat16 import InBfloat16
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.training.thinner import Widths, thinner

HALF = (0.5, 0.5, 0.5)
WIDE = {"backbone": "test_efficientnet", "pyramid_channels": 16, "head_width": 32, "most_proposals": 300}
CARD = ModelCard("d", "1", "detector", "faster_rcnn", WIDE, ("rbc", "platelet", "wbc"), 0.2, 0, HALF, HALF, "")


def in_float32(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, InBfloat16):
            part.half_precision = False
    return module.eval().requires_grad_(False)


def detector() -> LoadedModel:
    torch.manual_seed(3)
    module = builders.build(CARD)
    nn.init.normal_(module.rpn.head.cls_logits.weight, std=0.5)
    nn.init.normal_(module.rpn.head.bbox_pred.weight, std=0.05)
    for block in [*module.backbone.fpn.inner_blocks, *module.backbone.fpn.layer_blocks]:
        nn.init.normal_(block[0].bias, std=0.3)
    return LoadedModel(in_float32(module), CARD, torch.device("cpu"))


def pictures(n: int, seed: int = 0) -> list[Tensor]:
    dice = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 96, 128, generator=dice) for _ in range(n)]


@torch.inference_mode()
def answers(module: nn.Module, picture: Tensor) -> list[Tensor]:
    """All objectness and box deltas of a picture, and what the box head makes of a few regions."""
    maps = module.backbone(picture[None])
    objectness, deltas = module.rpn.head(list(maps.values()))
    regions = [torch.tensor([[3.0, 5.0, 40.0, 60.0], [20.0, 10.0, 90.0, 80.0], [60.0, 2.0, 74.0, 17.0]])]
    pooled = module.roi_heads.box_roi_pool(maps, regions, [(96, 128)])
    scores, boxes = module.roi_heads.box_predictor(module.roi_heads.box_head(pooled))
    return [*objectness, *deltas, scores, boxes]


def apart(one: nn.Module, other: nn.Module, picture: Tensor) -> float:
    """How much of the spread of the answers one has from the other."""
    pairs = zip(answers(one, picture), answers(other, picture), strict=True)
    return max(float((a - b).pow(2).mean() / a.var()) for a, b in pairs)


def test_as_many_axes_as_channels_change_nothing() -> None:
    wide = detector()
    same = thinner(wide, Widths(16, 16), pictures(2))
    for a, b in zip(
        answers(wide.module, pictures(1, 9)[0]), answers(in_float32(same.module), pictures(1, 9)[0]), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_fewer_channels_come_nearer_the_more_they_are() -> None:
    wide, unseen = detector(), pictures(1, 9)[0]
    thin = {c: in_float32(thinner(wide, Widths(c, c), pictures(3)).module) for c in (14, 8, 2)}
    assert thin[8].backbone.out_channels == 8
    assert thin[8].rpn.head.conv[0][0].weight.shape == (8, 8, 3, 3)
    distances = [apart(wide.module, thin[c], unseen) for c in (14, 8, 2)]
    assert distances == sorted(distances)
    assert distances[0] < 0.3
    torch.manual_seed(4)
    arbitrary = in_float32(builders.build(replace(CARD, arguments=WIDE | {"pyramid_channels": 14})))
    assert apart(wide.module, arbitrary, unseen) > 0.9


def test_channels_that_hold_nothing_are_not_missed() -> None:
    """Maps of 16 channels that lie in 6 of them, behind which a head reads few of its own."""
    wide = detector()
    fpn, head = wide.module.backbone.fpn, wide.module.rpn.head
    torch.manual_seed(5)
    onto = torch.linalg.qr(torch.randn(16, 6))[0]
    for blocks in (fpn.inner_blocks, fpn.layer_blocks):
        for block in blocks:
            block[0].weight.copy_(torch.einsum("oc,dc,dikl->oikl", onto, onto, block[0].weight))
            block[0].bias.copy_(onto @ (onto.T @ block[0].bias))
    for layer in (head.cls_logits, head.bbox_pred):
        layer.weight[:, 6:] = 0
    thin = in_float32(thinner(wide, Widths(6, 6), pictures(3)).module)
    assert apart(wide.module, thin, pictures(1, 9)[0]) < 0.01


def test_hidden_channels_that_are_kept_bring_proposals_nearer() -> None:
    wide, unseen = detector(), pictures(1, 9)[0]
    few, all_of_them = (in_float32(thinner(wide, Widths(14, hidden), pictures(3)).module) for hidden in (4, 16))
    assert all_of_them.rpn.head.conv[0][0].weight.shape == (16, 14, 3, 3)
    wanted, n_proposals = answers(wide.module, unseen), 2 * 4  # objectness and deltas of four levels

    def missed(module: nn.Module) -> float:
        pairs = zip(answers(module, unseen)[:n_proposals], wanted[:n_proposals], strict=True)
        return sum(float((a - b).pow(2).mean() / b.var()) for a, b in pairs)

    assert missed(all_of_them) < 0.8 * missed(few)


def test_what_cannot_be_made_thinner_says_so() -> None:
    wide = detector()
    for more in (Widths(20, 16), Widths(8, 20)):
        with pytest.raises(ValueError, match=r"d: Widths\(pyramid=16, proposals=16\) get no thinner by Widths"):
            thinner(wide, more, pictures(1))
    one_level = replace(CARD, builder="faster_rcnn_one_level")
    with pytest.raises(ValueError, match="'faster_rcnn_one_level' has no pyramid"):
        thinner(LoadedModel(builders.build(one_level), one_level, torch.device("cpu")), Widths(8, 8), pictures(1))
