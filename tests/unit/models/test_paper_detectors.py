"""The detectors of Wang 2021: each trains, answers, and comes back from its file as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.pyramid import Pyramid, TwoWayPyramid
from wbc.models.trainable import TrainableDetector

HALF = (0.5, 0.5, 0.5)
SMALL = {"backbone": "test_efficientnet", "pyramid_channels": 16, "head_width": 32, "samples": {"anchors": 16}}
ONE = {"anchor_px": [[12, 21]]}
FOUR = {"anchor_px": [[12], [21], [62], [130]]}
SEARCH = {"attention": {"hidden": 16, "region": 1}}
AGENT = {"agent": {"hidden": 16, "t_max": 3}}
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "one level": ("faster_rcnn_one_level", SMALL | ONE),
    "pyramid": ("faster_rcnn", SMALL | FOUR),
    "two ways": ("attentive_rcnn", {}),
    "attention": ("attentive_rcnn", SEARCH),
    "agent": ("attentive_rcnn", SEARCH | AGENT),
}


def card(name: str, **changes: Any) -> ModelCard:
    """The card of a system; `changes` are its detector's settings."""
    builder, arguments = SYSTEMS[name]
    arguments = arguments | ({"detector": SMALL | FOUR | changes} if builder == "attentive_rcnn" else changes)
    return ModelCard("small", "1", "detector", builder, arguments, ("rbc", "wbc"), 0.2, 0, HALF, HALF, "")


def made(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return builders.build(card(name, **changes))


def picture(seed: int, height: int = 64, width: int = 96) -> tuple[Tensor, dict[str, Tensor]]:
    """A bright picture with one red and one dark square of 20 px, and the target that says so."""
    generator = torch.Generator().manual_seed(seed)
    pixels = 0.9 - 0.05 * torch.rand(3, height, width, generator=generator)
    boxes = []
    for left, colour in ((2, (0.8, 0.3, 0.3)), (width // 2, (0.2, 0.1, 0.5))):
        x = left + int(torch.randint(0, width // 2 - 24, (1,), generator=generator))
        y = int(torch.randint(0, height - 20, (1,), generator=generator))
        pixels[:, y : y + 20, x : x + 20] = torch.tensor(colour)[:, None, None]
        boxes.append([x, y, x + 20, y + 20])
    return pixels, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor([1, 2])}


def losses_on(model: nn.Module, *samples: tuple[Tensor, dict[str, Tensor]]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    losses: dict[str, Tensor] = model.train()([p for p, _ in samples], [dict(t) for _, t in samples])
    return losses


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def overfitted(model: nn.Module, samples: list[tuple[Tensor, dict[str, Tensor]]], steps: int) -> None:
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.3  # statistics of so few steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    for _ in range(steps):
        optimizer.zero_grad()
        total(losses_on(model, *samples)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        falling.step()


@pytest.mark.parametrize("name", SYSTEMS)
@torch.inference_mode()
def test_odd_sizes_and_pictures_together_give_boxes_inside_them(name: str) -> None:
    model = made(name, lowest_objectness=0.0, most_proposals=60)
    assert isinstance(model, TrainableDetector)
    tiles = [torch.rand(3, *shape) for shape in ((70, 101), (33, 64), (64, 33))]
    for tile, seen in zip(tiles, model(tiles), strict=True):
        height, width = tile.shape[1:]
        assert len(seen["boxes"]) == len(seen["scores"]) == len(seen["labels"]) > 0
        assert ((seen["boxes"] >= 0) & (seen["boxes"] <= torch.tensor([width, height] * 2))).all()
        assert set(seen["labels"].tolist()) <= {1, 2}


@pytest.mark.parametrize("name", SYSTEMS)
@torch.inference_mode()
def test_without_proposals_nothing_is_found(name: str) -> None:
    (seen,) = made(name, lowest_objectness=1.1)([torch.rand(3, 64, 64)])
    assert [tuple(seen[key].shape) for key in ("boxes", "scores", "labels")] == [(0, 4), (0,), (0,)]


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_gradient_reaches_every_parameter(name: str) -> None:
    model = made(name, lowest_objectness=0.0, samples={"anchors": 256})  # some on every level
    total(losses_on(model, picture(0), picture(1, 90, 70))).backward()  # type: ignore[no-untyped-call]
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_picture_without_boxes_has_finite_losses_and_gradients(name: str) -> None:
    model, (pixels, _) = made(name), picture(0)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = losses_on(model, (pixels, nothing))
    assert all(torch.isfinite(term) for term in losses.values())
    total(losses).backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", SYSTEMS)
def test_pixels_that_are_no_numbers_show_in_the_loss(name: str) -> None:
    pixels, target = picture(0)
    pixels[0, 5, 5] = torch.nan
    assert not torch.isfinite(total(losses_on(made(name), (pixels, target))))


@pytest.mark.parametrize("name", ["one level", "agent"])
def test_three_pictures_are_learnt_by_heart_and_found_again_from_the_file(name: str, tmp_path: Path) -> None:
    own = card(name, lowest_objectness=0.1)
    torch.manual_seed(0)
    model: Any = builders.build(own)
    samples = [picture(seed) for seed in range(3)]
    overfitted(model, samples, 70)
    saved = registry.save(tmp_path, model.eval(), own)
    loaded = registry.load(registry.resolve(str(tmp_path), "detector")[0], "cpu")
    assert loaded.card == saved
    with torch.inference_mode():
        found = loaded.module([pixels for pixels, _ in samples])
        model.load_state_dict({k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()})
        for (_, target), seen, before in zip(samples, found, model([p for p, _ in samples]), strict=True):
            for label, true in zip(target["labels"], target["boxes"], strict=True):
                best = seen["scores"].masked_fill(seen["labels"] != label, 0).argmax()
                assert seen["scores"][best] > 0.5
                assert (seen["boxes"][best] - true).abs().max() < 5
            assert all(torch.equal(seen[key], before[key]) for key in seen)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"backbone": "vgg11"}, "'vgg11' cannot be dilated to stride 16"),
        ({"stride": 5}, "stride is 5, none of"),
        ({"anchor_px": [[12], [24]]}, "anchor_px has 2 lists, and the model one level"),
    ],
)
def test_a_wrong_setting_of_the_one_level_is_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        made("one level", **arguments)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "vgg11"])
@torch.inference_mode()
def test_the_pyramid_has_the_levels_of_any_backbone(backbone: str) -> None:
    maps = Pyramid(backbone, 8).eval()(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps.values()] == [(1, 8, 16, 24), (1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)]


@torch.inference_mode()
def test_the_way_up_brings_the_lowest_map_to_the_highest() -> None:
    torch.manual_seed(0)
    model, pixels = TwoWayPyramid("test_efficientnet", 8).eval(), torch.rand(1, 3, 64, 64)
    before = model(pixels)
    top_down = Pyramid.forward(model, pixels)
    assert torch.equal(before["0"], top_down["0"])
    added = model.fuse[0](top_down["1"] + model.halve[0](top_down["0"]).relu()).relu()
    assert torch.equal(before["1"], added)
    model.halve[0].weight.zero_()  # the lowest map's step up
    assert not torch.equal(model(pixels)["3"], before["3"])
