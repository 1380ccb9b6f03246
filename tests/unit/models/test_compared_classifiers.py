"""What the papers' classifiers are compared with: their layers counted, their equations on numbers made by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wbc.models import builders, cell3net, nlnet, staged, varra, wbcnet
from wbc.models.cards import ModelCard
from wbc.models.cell3net import Cell3NetSettings
from wbc.models.nlnet import NonLocalSettings
from wbc.models.staged import StagedSettings
from wbc.models.varra import VarraSettings
from wbc.models.wbcnet import WbcNetSettings

HALF = (0.5, 0.5, 0.5)


def leaves(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules() if not list(m.children())]


# The non-local block


def attending_block() -> nlnet.NonLocalBlock:
    """A block of two channels, one within: theta and phi read the first, g the second; W writes it on both."""
    block = nlnet.NonLocalBlock(2).eval()
    weights = {block.theta: [1.0, 0.0], block.phi: [1.0, 0.0], block.g: [0.0, 1.0]}
    with torch.no_grad():
        for embed, row in weights.items():
            embed.weight.copy_(torch.tensor(row).view(1, 2, 1, 1))
            nn.init.zeros_(embed.bias)  # type: ignore[arg-type]
        written, norm = block.w
        nn.init.ones_(written.weight)  # type: ignore[arg-type]
        nn.init.zeros_(written.bias)  # type: ignore[arg-type]
        nn.init.ones_(norm.weight)  # type: ignore[arg-type]
    return block


@torch.inference_mode()
def test_a_place_gets_the_mean_of_all_weighed_by_their_likeness() -> None:
    maps = torch.tensor([[[[0.0, 1.0]], [[2.0, 6.0]]]])
    # Of place 1, exp(1·0) and exp(1·1) weigh 2 and 6; place 0 looks at both alike.
    near = torch.tensor([0.0, 1.0]).softmax(0)
    y = torch.tensor([4.0, 2 * near[0] + 6 * near[1]])
    torch.testing.assert_close(attending_block()(maps), maps + y, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_new_block_changes_nothing() -> None:
    maps = torch.rand(2, 8, 3, 5)
    torch.testing.assert_close(nlnet.NonLocalBlock(8).eval()(maps), maps)
    assert nlnet.NonLocalBlock(8)(torch.zeros(0, 8, 3, 3)).shape == (0, 8, 3, 3)


def test_through_a_block_that_has_learnt_a_gradient_reaches_all_of_it() -> None:
    block = attending_block().train()
    block(torch.rand(2, 2, 3, 3)).square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    assert block.theta.weight.grad is not None
    assert block.theta.weight.grad.abs().sum() > 0


def test_the_block_is_all_that_is_added() -> None:
    settings = NonLocalSettings("test_resnet")
    added = set(dict(nlnet.build(3, settings).named_parameters())) - set(
        dict(staged.build(3, StagedSettings("test_resnet")).named_parameters())
    )
    assert {name.split(".")[0] for name in added} == {"block"}


# Layers, counted


def test_wbcnet_has_33_layers() -> None:
    model = wbcnet.build(4, WbcNetSettings(first=8, channels=8, hidden=8))
    blocks = [m for m in model.modules() if isinstance(m, wbcnet.ResidualBlock)]
    assert len([name for name in leaves(model) if name != "Flatten"]) + len(blocks) == 33  # a sum is one, too


def test_cell3net_has_the_layers_that_are_told() -> None:
    names = leaves(cell3net.build(4, Cell3NetSettings((8, 8, 8), 8)))
    assert names.count("Conv2d") == 7
    assert names.count("MaxPool2d") + names.count("AdaptiveMaxPool2d") == 3
    assert names.count("Linear") == 3


@torch.inference_mode()
def test_a_shortcut_to_more_channels_adds_nothing_to_them() -> None:
    layer = cell3net.ResidualLayer(2, 3).eval()
    nn.init.zeros_(layer.convolutions[-1].weight)  # type: ignore[arg-type]
    maps = torch.rand(1, 2, 4, 4)
    torch.testing.assert_close(layer(maps), torch.cat([maps, torch.zeros(1, 1, 4, 4)], 1))


@pytest.mark.parametrize(("model", "layers"), [(1, (1, 1, 2)), (2, (2, 1, 2)), (3, (3, 2, 3))])
def test_varras_models_grow_as_told(model: int, layers: tuple[int, int, int]) -> None:
    names = leaves(varra.build(4, VarraSettings(model)))
    assert tuple(names.count(layer) for layer in ("Conv2d", "MaxPool2d", "Dropout")) == layers


def test_a_fourth_model_is_refused() -> None:
    card = ModelCard("v", "1", "classifier", "varra", {"model": 4}, ("a", "b"), 0.5, 80, HALF, HALF, "")
    with pytest.raises(ValueError, match="model is 4: the report has the models 1, 2 and 3"):
        builders.build(card)
    with pytest.raises(ValueError, match="no ResNet, VGG or EfficientNet"):
        builders.build(replace(card, builder="plain", arguments={"backbone": "vit_tiny_patch16_224"}))


@pytest.mark.parametrize(
    ("crops", "shape"), [(torch.rand(2, 3, 80, 80), (2, 3, 60, 80)), (torch.rand(1, 3, 160, 160), (1, 3, 60, 80))]
)
def test_varra_sees_the_middle_rows_of_a_square(crops: Tensor, shape: tuple[int, ...]) -> None:
    seen = varra.its_picture(crops)
    assert seen.shape == shape
    if crops.shape[3] == 80:
        torch.testing.assert_close(seen, crops[:, :, 10:70])


def test_senet_squeezes_in_every_block() -> None:
    with torch.device("meta"):
        names = [type(m).__name__ for m in staged.build(4, StagedSettings("seresnet50")).modules()]
    assert names.count("SEModule") == names.count("Bottleneck") == 16
