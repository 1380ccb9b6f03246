"""A convolution and the ReLU or ReLU6 after it in one pass over memory: oneDNN's, as PyTorch's own compiler calls it.

`mkldnn._convolution_pointwise` is no promise of PyTorch's. So it is asked once a process whether it is there and gives
what the two layers give, to the bit; where not, they stay two.
"""

from functools import cache
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class RectifiedConvolution(nn.Module):
    """A 2-D convolution followed by a ReLU or ReLU6, for inference alone; it reckons in the dtype of its weights.

    TensorFlow's padding (`timm.layers.Conv2dSame`) by a stride of 2 puts one more pixel on the right and below, for
    which the whole input is copied. Where sides are even, a kernel with a row and a column of zeros more reads the
    same with no copy; of depthwise convolutions to the bit, while sums over channels would come in another order.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.activation = ACTIVATIONS[type(activation)]
        self.same = isinstance(convolution, Conv2dSame)
        self.wide = F.pad(convolution.weight, (1, 0, 1, 0)) if self._may_be_wide() else None

    def _may_be_wide(self) -> bool:
        layer = self.convolution
        odd = layer.kernel_size in ((3, 3), (5, 5), (7, 7))
        depthwise = layer.groups == layer.in_channels
        return self.same and odd and depthwise and layer.stride == (2, 2) and layer.dilation == (1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B,C,H,W) -> maps (B,F,h,w)."""
        layer = self.convolution
        maps = maps.to(layer.weight.dtype)
        if not self.same:
            return self._fused(maps, layer.weight, layer.padding)
        height, width = maps.shape[-2:]
        if self.wide is not None and height % 2 == 0 and width % 2 == 0:
            side = layer.kernel_size[0] // 2
            return self._fused(maps, self.wide, (side, side))
        padded = pad_same(maps, list(layer.kernel_size), list(layer.stride), list(layer.dilation))
        return self._fused(padded, layer.weight, (0, 0))

    def _fused(self, maps: Tensor, weight: Tensor, padding: Any) -> Tensor:
        layer, (name, bounds) = self.convolution, self.activation
        place = (padding, layer.stride, layer.dilation, layer.groups)
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(maps, weight, layer.bias, *place, name, bounds, "")
        return fused


@cache
def can_fuse(dtype: torch.dtype) -> bool:
    """Whether the fused pass is there on this CPU, and gives to the bit what the two layers give."""
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            layer = nn.Conv2d(8, 8, 3, padding=1, groups=8).to(dtype)
            maps = 20 * torch.rand(1, 8, 12, 12).to(dtype)
            return all(torch.equal(RectifiedConvolution(layer, a())(maps), a()(layer(maps))) for a in ACTIVATIONS)
    except (AttributeError, RuntimeError, TypeError):
        return False
