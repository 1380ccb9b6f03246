"""A detector with fewer channels that is as near to a wider one as it can be."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wbc.models import builders
from wbc.models.bfloat16 import InBfloat16
from wbc.models.cards import ModelCard
from wbc.models.expansions import expanding_blocks, expansions, narrow
from wbc.models.registry import LoadedModel
from wbc.training.projection import project
from wbc.training.thinner import Seen, Widths, thinner

HALF = (0.5, 0.5, 0.5)
BODY = (48, 48, 48, 96, 96, 96, 144, 144, 144, 144, 192, 192, 192, 336, 336, 336)  # what its blocks expand to
WIDE = {"backbone": "mobilenetv2_035", "pyramid_channels": 16, "head_width": 32, "most_proposals": 300}
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
    wide: Any = detector().module
    state = {name: tensor.double() for name, tensor in wide.state_dict().items()}
    seen = Seen(wide, pictures(2))
    project(state, seen.inner, seen.outer, 16)
    turned = in_float32(builders.build(CARD))
    turned.load_state_dict({name: tensor.to(wide.state_dict()[name].dtype) for name, tensor in state.items()})
    assert not torch.allclose(turned.rpn.head.conv[0][0].weight, wide.rpn.head.conv[0][0].weight, atol=1e-2)  # type: ignore[union-attr,index]
    for a, b in zip(answers(wide, pictures(1, 9)[0]), answers(turned, pictures(1, 9)[0]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_as_many_channels_leave_all_weights_as_they_are() -> None:
    wide = detector()
    same = thinner(wide, Widths(16, 16, 32, BODY), pictures(1)).module.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in wide.module.state_dict().items())


def test_fewer_channels_come_nearer_the_more_they_are() -> None:
    wide, unseen = detector(), pictures(1, 9)[0]
    thin = {c: in_float32(thinner(wide, Widths(c, c, 32, BODY), pictures(3)).module) for c in (14, 8, 2)}
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
    thin = in_float32(thinner(wide, Widths(6, 6, 32, BODY), pictures(3)).module)
    assert apart(wide.module, thin, pictures(1, 9)[0]) < 0.01


def test_hidden_channels_that_are_kept_bring_proposals_nearer() -> None:
    wide, unseen = detector(), pictures(1, 9)[0]
    few, all_of_them = (
        in_float32(thinner(wide, Widths(14, hidden, 32, BODY), pictures(3)).module) for hidden in (4, 16)
    )
    assert all_of_them.rpn.head.conv[0][0].weight.shape == (16, 14, 3, 3)
    wanted, n_proposals = answers(wide.module, unseen), 2 * 4  # objectness and deltas of four levels

    def missed(module: nn.Module) -> float:
        pairs = zip(answers(module, unseen)[:n_proposals], wanted[:n_proposals], strict=True)
        return sum(float((a - b).pow(2).mean() / b.var()) for a, b in pairs)

    assert missed(all_of_them) < 0.8 * missed(few)


def test_expanded_channels_that_others_stand_in_for_are_not_missed() -> None:
    """Of what each block of the body expands to the second half says the same as the first."""
    wide = detector()
    for block in expanding_blocks(wide.module.body):
        half = block.conv_pwl.in_channels // 2
        for layer in (block.conv_pw, block.conv_dw, block.bn1, block.bn2):
            for tensor in [*layer.parameters(), *layer.buffers()]:
                if tensor.ndim:
                    tensor[half:] = tensor[:half]
    halves = tuple(n // 2 for n in BODY)
    thin = thinner(wide, Widths(16, 16, 32, halves), pictures(24))  # some hundred places of the coarsest map
    assert thin.card.arguments["expanded_channels"] == list(halves)
    assert expansions(in_float32(thin.module).body) == halves
    for a, b in zip(answers(wide.module, pictures(1, 9)[0]), answers(thin.module, pictures(1, 9)[0]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-2)
    arbitrary = detector()
    narrow(arbitrary.module.body, halves)
    assert apart(wide.module, arbitrary.module, pictures(1, 9)[0]) > 0.1


def test_hidden_channels_of_the_box_head_that_say_nothing_new_are_not_missed() -> None:
    wide = detector()
    head, predictor = wide.module.roi_heads.box_head, wide.module.roi_heads.box_predictor
    head.fc6.weight[20:], head.fc6.bias[20:] = head.fc6.weight[:12], head.fc6.bias[:12]
    predictor.cls_score.weight[:, 20:] = predictor.bbox_pred.weight[:, 20:] = 0
    thin = thinner(wide, Widths(16, 16, 20, BODY), pictures(3))
    assert in_float32(thin.module).roi_heads.box_head.fc7.weight.shape == (20, 20)
    scores, boxes = answers(thin.module, pictures(1, 9)[0])[-2:]
    wanted = answers(wide.module, pictures(1, 9)[0])[-2:]
    torch.testing.assert_close(scores, wanted[0], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(boxes[:, 4:], wanted[1][:, 4:], atol=1e-3, rtol=1e-2)


def test_what_cannot_be_made_thinner_says_so() -> None:
    wide = detector()
    for more in (Widths(20, 16, 32, BODY), Widths(8, 20, 32, BODY), Widths(8, 8, 40, BODY), Widths(8, 8, 8, BODY[1:])):
        with pytest.raises(
            ValueError, match=r"d: Widths\(pyramid=16, proposals=16, head=32, .*\) get no thinner by Widths"
        ):
            thinner(wide, more, pictures(1))
    one_level = replace(CARD, builder="faster_rcnn_one_level")
    with pytest.raises(ValueError, match="'faster_rcnn_one_level' has no pyramid"):
        thinner(LoadedModel(builders.build(one_level), one_level, torch.device("cpu")), Widths(8, 8, 32), pictures(1))
