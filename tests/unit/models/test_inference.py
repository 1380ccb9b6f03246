"""A detector made ready for inference finds what it found before."""

import copy

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn
from torchvision.models.detection.rpn import RegionProposalNetwork

from wbc.models import faster_rcnn
from wbc.models.bfloat16 import InBfloat16
from wbc.models.faster_rcnn import FasterRCNN, FasterRCNNSettings
from wbc.models.fused_convolution import ACTIVATIONS, RectifiedConvolution, can_fuse
from wbc.models.inference import for_inference

CPU = torch.device("cpu")
SETTINGS = FasterRCNNSettings(pyramid_channels=16, head_width=32, lowest_objectness=0.5, most_proposals=400)


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    """An untrained detector in float32 whose batch norms and proposals are not all alike."""
    torch.manual_seed(1)
    module = faster_rcnn.build(3, (0.5,) * 3, (0.2,) * 3, SETTINGS)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.normal_(0, 0.1)
        if isinstance(part, InBfloat16):
            part.half_precision = False
    nn.init.normal_(module.rpn.head.cls_logits.weight, std=0.5)
    nn.init.normal_(module.rpn.head.bbox_pred.weight, std=0.05)
    return module.eval().requires_grad_(False)


def pictures() -> list[torch.Tensor]:
    torch.manual_seed(2)
    return [torch.rand(3, 160, 192), torch.rand(3, 160, 192)]


@torch.inference_mode()
def test_ready_it_finds_the_same(detector: FasterRCNN) -> None:
    ready = for_inference(detector, CPU)
    for before, after in zip(detector(pictures()), ready(pictures()), strict=True):
        assert len(before["boxes"]) > 20
        torch.testing.assert_close(after["boxes"], before["boxes"], atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(after["scores"], before["scores"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("half", [False, True])
@torch.inference_mode()
def test_what_it_finds_first_it_finds_again_to_the_bit(detector: FasterRCNN, half: bool) -> None:
    fresh = copy.deepcopy(detector)
    fresh.roi_heads.box_roi_pool.scales = None  # as in a process that has looked at nothing yet
    for part in fresh.modules():
        if isinstance(part, InBfloat16):
            part.half_precision = half
    ready = for_inference(fresh, CPU)
    first, again = ready(pictures()), ready(pictures())
    for before, after in zip(first, again, strict=True):
        assert len(before["boxes"]) > 20
        assert torch.equal(after["boxes"], before["boxes"])
        assert torch.equal(after["scores"], before["scores"])


def test_the_original_keeps_its_weights_and_can_be_trained(detector: FasterRCNN) -> None:
    before = copy.deepcopy(detector.state_dict())
    ready = for_inference(detector, CPU)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in ready.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 96), (64, 95), (33, 35)])
@torch.inference_mode()
def test_a_convolution_with_its_rectifier_is_both_to_the_bit(
    dtype: torch.dtype, activation: type[nn.Module], half: bool, height: int, width: int
) -> None:
    torch.manual_seed(3)
    stride = 2 if half else 1
    maps = (8 * torch.randn(2, 16, height, width)).to(dtype).contiguous(memory_format=torch.channels_last)
    for kind, kernel, groups in ((Conv2dSame, 3, 16), (Conv2dSame, 5, 16), (Conv2dSame, 3, 1), (nn.Conv2d, 3, 16)):
        padding = 0 if kind is Conv2dSame else kernel // 2
        layer = kind(16, 32, kernel, stride, padding, groups=groups).to(dtype)
        assert torch.equal(RectifiedConvolution(layer, activation())(maps), activation()(layer(maps)))


@torch.inference_mode()
def test_every_rectifier_behind_a_convolution_is_part_of_it(detector: FasterRCNN) -> None:
    ready = for_inference(detector, CPU)
    assert sum(isinstance(part, RectifiedConvolution) for part in ready.modules()) == 33
    assert not any(isinstance(part, nn.ReLU | nn.ReLU6) for part in ready.modules())


def test_without_the_fused_pass_layers_stay_two(detector: FasterRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(RectifiedConvolution, "_fused", gone)
    can_fuse.cache_clear()
    ready = for_inference(detector, CPU)
    can_fuse.cache_clear()
    assert sum(isinstance(part, nn.ReLU6) for part in ready.modules()) == 32


def test_another_module_is_left_alone() -> None:
    module = nn.Linear(2, 2)
    assert for_inference(module, CPU) is module


@pytest.mark.parametrize("lowest", [0.0, 0.5, 0.8, 1.1])
@torch.inference_mode()
def test_proposals_are_those_of_torchvision(detector: FasterRCNN, lowest: float) -> None:
    network = copy.deepcopy(detector.rpn)
    network.score_thresh = lowest
    images, _ = detector.transform(pictures())
    maps = detector.backbone(images.tensors)
    theirs, _ = RegionProposalNetwork.forward(network, images, dict(maps))
    ours, _ = network(images, maps)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        torch.testing.assert_close(*(boxes[boxes.sum(1).argsort()] for boxes in (mine, other)))
