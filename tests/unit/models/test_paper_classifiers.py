"""The classifiers of ASAE-Net 2020 and Varra 2019: their shapes, what learns in them, and their equations by hand."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wbc.models import adl, asae, builders, registry
from wbc.models.asae import AsaeSettings
from wbc.models.cards import ModelCard

HALF = (0.5, 0.5, 0.5)
SMALL = {"backbone": "test_resnet"}
CARD = ModelCard("p", "1", "classifier", "asae", SMALL, ("a", "b", "c", "d"), 0.2, 64, HALF, HALF, "")
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("asae", SMALL | {"area_px": 4}),  # maps are small here: 36 would be all of one
    ("asae", {"backbone": "test_efficientnet", "after": 4, "area_px": 1}),
    ("adl", SMALL | {"drop_chance": 0.2}),
    ("plain", SMALL),
    ("nlnet", SMALL),
    ("wbcnet", {"first": 16, "channels": 32, "hidden": 64, "dropout": 0.1}),
    ("cell3net", {"filters": [16, 24, 32], "hidden": 64, "dropout": 0.1}),
    ("varra", {"model": 1}),
    ("varra", {"model": 2}),
    ("varra", {"model": 3}),
]
every_model = pytest.mark.parametrize(("builder", "arguments"), MODELS)


def built(builder: str, arguments: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return builders.build(replace(CARD, builder=builder, arguments=arguments))


@every_model
@torch.inference_mode()
def test_crops_of_any_size_and_none_get_logits(builder: str, arguments: dict[str, Any]) -> None:
    model = built(builder, arguments)
    for n, height, width in ((2, 64, 64), (1, 81, 67), (0, 64, 64)):
        assert model(torch.rand(n, 3, height, width)).shape == (n, 4)


@every_model
def test_a_gradient_reaches_every_parameter(builder: str, arguments: dict[str, Any]) -> None:
    model = built(builder, arguments).train()
    F.cross_entropy(model(torch.rand(4, 3, 64, 64)), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@every_model
def test_four_pictures_are_learnt_by_heart(builder: str, arguments: dict[str, Any]) -> None:
    model = built(builder, arguments).train()
    crops = torch.rand(4, 3, 1, 1).expand(-1, -1, 64, 64) + 0.3 * torch.rand(4, 3, 64, 64)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(crops), torch.arange(4))
        if loss.item() < 0.3:
            return
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    pytest.fail(f"after 60 steps the loss is {loss.item():.2f}")


@every_model
@torch.inference_mode()
def test_saved_and_loaded_it_says_the_same(builder: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    model, crops = built(builder, arguments), torch.rand(2, 3, 64, 64)
    registry.save(tmp_path / "m", model, replace(CARD, builder=builder, arguments=arguments), {})
    ref, _ = registry.resolve(str(tmp_path / "m"), "classifier")
    torch.testing.assert_close(registry.load(ref, "cpu").module(crops), model(crops), rtol=1e-3, atol=1e-4)


# The ASAE layer


@pytest.mark.parametrize("backbone", ["resnet50", "resnet18", "vgg16", "tf_efficientnet_lite0"])
def test_no_parameter_is_added_and_the_five_layers_are_the_backbone(backbone: str) -> None:
    with torch.device("meta"):
        model, plain = asae.build(4, AsaeSettings(backbone)), timm.create_model(backbone, num_classes=4)
        assert {n.removeprefix("backbone."): p.shape for n, p in model.named_parameters()} == {
            n: p.shape for n, p in plain.named_parameters()
        }
        maps = model.lower(torch.empty(1, 3, 224, 224))
        assert maps.shape[2:] == (14, 14)
        assert model.upper(maps).shape == plain.forward_features(torch.empty(1, 3, 224, 224)).shape


@torch.inference_mode()
def test_at_test_the_layer_is_skipped() -> None:
    model: Any = built("asae", SMALL)
    crops = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(crops), model.backbone(crops))
    torch.testing.assert_close(model.forward_head(model.forward_features(crops)), model.backbone(crops))


def hill(*heights: tuple[int, int, float], side: int = 14) -> Tensor:
    """An attention map (1,side,side) of 0.1 but for some pixels."""
    attention = torch.full((1, side, side), 0.1)
    for y, x, value in heights:
        attention[0, y, x] = value
    return attention


def test_what_is_near_the_peak_and_high_is_suppressed_and_nothing_else() -> None:
    # (8, 7) is below γ·Peak = 0.8, (10, 7) is 3 down, where an even square ends at 2; (4, 7) is 3 up, within it.
    attention = hill((7, 7, 1.0), (7, 8, 0.8), (8, 7, 0.79), (4, 7, 0.9), (10, 7, 0.9), (7, 11, 0.95))
    mask = asae.suppression_mask(attention, AsaeSettings(top1_chance=1.0))
    assert (mask[0] == 0).nonzero().tolist() == [[4, 7], [7, 7], [7, 8]]
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_a_square_at_the_edge_is_cut_there() -> None:
    attention = torch.ones(1, 4, 5)
    attention[0, 0, 0] = 1.1
    mask = asae.suppression_mask(attention, AsaeSettings(top1_chance=1.0, kernel_px=3, area_px=16))
    assert (mask[0] == 0).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_the_highest_peak_is_chosen_seven_times_of_ten_and_the_next_four_alike_else() -> None:
    heights = [(1, 1, 0.9), (1, 12, 0.8), (12, 1, 0.7), (12, 12, 0.6), (6, 6, 0.5), (6, 12, 0.4)]
    torch.manual_seed(1)
    chosen = asae.chosen_peak(hill(*heights).expand(4000, -1, -1), AsaeSettings())
    share = [(chosen == y * 14 + x).float().mean().item() for y, x, _ in heights]
    assert share == pytest.approx([0.7, 0.075, 0.075, 0.075, 0.075, 0.0], abs=0.03)


def test_a_map_with_one_peak_has_it_chosen_and_one_of_no_numbers_breaks_nothing() -> None:
    slope = torch.arange(49.0).view(1, 7, 7)
    settings = AsaeSettings(top1_chance=0.0)
    assert asae.chosen_peak(slope, settings).tolist() == [48]
    maps = torch.full((1, 2, 7, 7), torch.nan)
    assert all(branch.isnan().all() for branch in asae.asae_layer(maps, settings))


def test_enhancement_is_the_sigmoid_of_the_mean_over_channels() -> None:
    maps = torch.tensor([[[[0.0, 2.0]], [[0.0, 4.0]]]])
    (enhanced,) = asae.asae_layer(maps, AsaeSettings(suppress=False))
    torch.testing.assert_close(enhanced, maps * torch.tensor([0.5, 0.9525741]))
    (level,) = asae.asae_layer(maps, AsaeSettings(suppress=False, level=True))
    torch.testing.assert_close(level, maps * torch.tensor([0.5, 0.9525741]) / 0.72628705)


def test_both_branches_probabilities_are_averaged() -> None:
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.0, 2.0], [5.0, 1.0]])
    p = logits.softmax(1)
    torch.testing.assert_close(asae.mean_of_branches(logits, 2).softmax(1), (p[:2] + p[2:]) / 2)
    assert asae.mean_of_branches(torch.zeros(0, 2), 2).shape == (0, 2)


def test_no_gradient_goes_through_the_masks() -> None:
    maps = torch.rand(2, 3, 7, 7, requires_grad=True)
    settings = AsaeSettings(enhance=False)
    torch.manual_seed(2)
    mask = asae.suppression_mask(asae.attention_map(maps), settings)
    torch.manual_seed(2)
    asae.asae_layer(maps, settings)[0].sum().backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, mask[:, None].expand_as(maps))
    assert not adl.drop_mask(asae.attention_map(maps), 0.8).requires_grad


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"after": 5}, "after is 5"),
        ({"suppress": False, "enhance": False}, "at least one branch"),
        ({"kernel_px": 4}, "odd side"),
        ({"backbone": "vit_tiny_patch16_224"}, "no ResNet, VGG or EfficientNet"),
    ],
)
def test_what_cannot_be_built_is_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        builders.build(replace(CARD, arguments=SMALL | arguments))


def test_a_copy_is_apart_from_what_it_was_copied_from() -> None:
    model: Any = built("asae", SMALL)
    copy = deepcopy(model)
    with torch.no_grad():
        for p in copy.parameters():
            p.zero_()
    assert model(torch.rand(1, 3, 64, 64)).abs().sum() > 0
    assert copy(torch.rand(1, 3, 64, 64)).abs().sum() == 0


def test_adl_drops_what_is_above_a_part_of_the_highest() -> None:
    attention = torch.tensor([[[1.0, 0.8, 0.81], [0.2, 0.0, 0.9]]])
    assert adl.drop_mask(attention, 0.8).tolist() == [[[0, 1, 0], [1, 1, 0]]]
