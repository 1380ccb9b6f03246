"""Fewer channels in a body's inverted residuals."""

from dataclasses import replace

import pytest
import timm
import torch

from wbc.models import builders
from wbc.models.cards import ModelCard
from wbc.models.expansions import expanding_blocks, expansions, keep, narrow

BODY = (96, 144, 144, 240, 240, 480, 480, 480, 672, 672, 672, 1152, 1152, 1152, 1152)
FEWER = (64, 144, 144, 240, 112, 192, 192, 192, 272, 272, 96, 144, 144, 144, 144)
HALF = (0.5, 0.5, 0.5)
CARD = ModelCard("d", "1", "detector", "faster_rcnn", {}, ("rbc", "platelet", "wbc"), 0.2, 0, HALF, HALF, "")


def lite0() -> torch.nn.Module:
    torch.manual_seed(0)
    body = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(-4, -3, -2, -1))
    return body.eval().requires_grad_(False)


@pytest.mark.parametrize("sides", [(64, 96), (75, 41)])
def test_a_narrower_body_takes_and_gives_the_same_shapes(sides: tuple[int, int]) -> None:
    whole, narrower = lite0(), lite0()
    narrow(narrower, FEWER)
    assert (expansions(whole), expansions(narrower)) == (BODY, FEWER)
    pixels = torch.rand(2, 3, *sides)
    assert [m.shape for m in narrower(pixels)] == [m.shape for m in whole(pixels)]


def test_channels_that_nothing_reads_may_go() -> None:
    whole, narrower = lite0(), lite0()
    for body in (whole, narrower):
        for block in expanding_blocks(body):
            block.conv_pwl.weight[:, ::3] = 0
    for block in expanding_blocks(narrower):
        n = block.conv_pwl.in_channels
        keep(block, torch.tensor([i for i in range(n) if i % 3]))
    pixels = torch.rand(1, 3, 64, 64)
    for a, b in zip(whole(pixels), narrower(pixels), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("builder", ["faster_rcnn", "faster_rcnn_one_level", "attentive_rcnn"])
def test_a_detector_has_the_body_that_its_card_says(builder: str) -> None:
    own: dict[str, object] = {"expanded_channels": list(FEWER), "head_width": 16}
    if builder == "faster_rcnn_one_level":
        own |= {"anchor_px": [[12, 28, 62]]}
    module = builders.build(replace(CARD, builder=builder, arguments={"detector": own} if "att" in builder else own))
    blocks = expansions(module.backbone.body)  # type: ignore[union-attr,arg-type]
    assert blocks == FEWER[: len(blocks)]
    assert len(blocks) > 5
    module.train()
    target = {"boxes": torch.tensor([[8.0, 8.0, 48.0, 48.0]]), "labels": torch.tensor([1])}
    sum(module([torch.rand(3, 96, 96)], [target]).values()).backward()
    assert all(block.conv_dw.weight.grad is not None for block in expanding_blocks(module.backbone.body))  # type: ignore[union-attr,arg-type]


def test_channels_that_a_body_does_not_have_are_refused() -> None:
    for channels in (BODY[1:], (*BODY[:-1], 1153), (0, *BODY[1:])):
        with pytest.raises(ValueError, match=r"expanded_channels is \[.*and the body's are at most \[96, 144"):
            narrow(lite0(), channels)
    arguments = {"backbone": "test_efficientnet", "expanded_channels": [64, 96]}
    with pytest.raises(ValueError, match="inverted residuals squeeze and excite them"):
        builders.build(replace(CARD, arguments=arguments))
    with pytest.raises(ValueError, match=r"at most \[\]"):
        builders.build(replace(CARD, arguments={"backbone": "resnet18", "expanded_channels": [64]}))
