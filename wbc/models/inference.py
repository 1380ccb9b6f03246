"""Models made ready to find and to name cells, no longer to learn: the same sums in fewer steps."""

import copy
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, InvertedResidual
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import Conv2dNormActivation

from wbc.models.bfloat16 import InBfloat16
from wbc.models.faster_rcnn import BoxHead, FasterRCNN
from wbc.models.fused_convolution import ACTIVATIONS, RectifiedConvolution, can_fuse

# Which batch norm follows which convolution is written in these blocks' forward; of others nothing is folded.
FOLDED: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    EfficientNet: (("conv_stem", "bn1"), ("conv_head", "bn2")),
    EfficientNetFeatures: (("conv_stem", "bn1"),),
    ConvBnAct: (("conv", "bn1"),),
    DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


def for_inference(module: nn.Module, device: torch.device) -> nn.Module:
    """A detector ready to run on `device`: a copy, or the module itself where nothing of it is known.

    Batch norms are folded into their convolutions, weights that bfloat16 parts would convert at each call are kept so,
    the box head reads pooled regions as they lie in memory, and on a CPU a convolution does the ReLU that follows it.
    Exact but for rounding.
    """
    if not isinstance(module, FasterRCNN):
        return module
    ready: Any = copy.deepcopy(module)
    fold_batch_norms(ready.backbone)
    if isinstance(ready.roi_heads.box_head, BoxHead):
        ready.roi_heads.box_head = RowsBoxHead(ready.roi_heads.box_head, ready.backbone.out_channels)
    for part in ready.modules():
        if isinstance(part, InBfloat16) and part.in_bfloat16(device):
            _keep_in_bfloat16(part)
    if device.type == "cpu":
        fuse_rectifiers(ready)
    made: nn.Module = ready.eval()
    return made


def folded(module: nn.Module) -> nn.Module:
    """A copy of a classifier whose batch norms are part of their convolutions. Exact but for rounding."""
    ready = copy.deepcopy(module)
    fold_batch_norms(ready)
    return ready.eval()


def fold_batch_norms(module: nn.Module) -> None:
    """Each batch norm of a known block into the convolution before it, in place."""
    for block in list(module.modules()):
        for convolution, norm in FOLDED.get(type(block), ()):
            follower = getattr(block, norm)
            if isinstance(follower, BatchNormAct2d):
                setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), follower))
                setattr(block, norm, follower.act)


def fuse_rectifiers(module: nn.Module) -> None:
    """Each ReLU and ReLU6 behind a convolution becomes part of it, in place, once batch norms are folded."""
    for block in list(module.modules()):
        for name, norm in FOLDED.get(type(block), ()):
            _fuse(block, name, norm)
        if isinstance(block, Conv2dNormActivation) and len(block) == 2:
            _fuse(block, "0", "1")


def _fuse(block: nn.Module, name: str, follower: str) -> None:
    convolution, activation = getattr(block, name), getattr(block, follower)
    if type(activation) in ACTIVATIONS and can_fuse(convolution.weight.dtype):
        setattr(block, name, RectifiedConvolution(convolution, activation))
        setattr(block, follower, nn.Identity())


def _keep_in_bfloat16(part: nn.Module) -> None:
    for layer in part.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(torch.bfloat16)


class RowsBoxHead(InBfloat16):
    """A `BoxHead` for regions whose channels lie side by side, as `PyramidRoIAlign` pools them: nothing is moved."""

    def __init__(self, head: BoxHead, channels: int) -> None:
        super().__init__()
        if "half_precision" in vars(head):
            self.half_precision = head.half_precision
        layers: Any = head
        self.fc6: nn.Linear = layers.fc6
        self.fc7: nn.Linear = layers.fc7
        planes = self.fc6.weight.view(len(self.fc6.weight), channels, -1)
        self.fc6.weight = nn.Parameter(planes.transpose(1, 2).flatten(1).contiguous(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Pooled regions (R,C,bins,bins) -> what the two layers make of them, float32 (R,width)."""
        device = inputs.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.in_bfloat16(device)):
            rows = inputs.permute(0, 2, 3, 1).flatten(1)
            hidden = nn.functional.relu(self.fc7(nn.functional.relu(self.fc6(rows))))
        return hidden.float()
