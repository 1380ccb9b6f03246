"""What OpenVINO gets instead of timm's paddings pads as they do, where sides are multiples of the stride."""

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from wbc.models.openvino_network import pad_by_constants


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 2, 1), (5, 2, 8), (1, 2, 1), (3, 1, 8)])
def test_constant_paddings_are_tensorflows(kernel: int, stride: int, groups: int) -> None:
    layer = Conv2dSame(8, 8, kernel, stride, groups=groups)
    block = nn.Sequential(layer)
    maps = torch.rand(1, 8, 32, 64)
    expected = block(maps)
    pad_by_constants(block)
    assert block[0] is not layer
    assert torch.equal(block(maps), expected)
