"""How many channels the inverted residuals of a timm body expand to (Sandler 2018, "MobileNetV2", section 3.3).

An inverted residual expands its few channels by a 1×1 convolution, filters each of the expanded channels by a depthwise
one, and projects them upon few channels again. So an expanded channel touches nothing beyond its block, and a body may
have fewer of them than timm's: what it takes and gives stays.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = ("conv_pw", "conv_dw", "conv_pwl")  # of timm's inverted residuals, and of no other block


def expanding_blocks(body: nn.Module) -> list[Any]:
    """A body's inverted residuals in order; those of other kinds, which expand nothing, are not among them."""
    return [block for block in body.modules() if all(hasattr(block, name) for name in LAYERS)]


def expansions(body: nn.Module) -> tuple[int, ...]:
    """The expanded channels of each inverted residual."""
    return tuple(block.conv_dw.out_channels for block in expanding_blocks(body))


def narrow(body: nn.Module, channels: Sequence[int]) -> None:
    """Each inverted residual keeps the first `channels` of its expanded channels, in place.

    Raises ValueError where the body has another number of inverted residuals, fewer expanded channels, or such as
    weigh each other (squeeze and excitation).
    """
    own = expansions(body)
    if len(own) != len(channels) or any(not 0 < n <= before for n, before in zip(channels, own, strict=True)):
        raise ValueError(f"expanded_channels is {list(channels)}, and the body's are at most {list(own)}")
    if any(not isinstance(block.se, nn.Identity) for block in expanding_blocks(body)):
        raise ValueError("expanded_channels: the body's inverted residuals squeeze and excite them")
    for block, n in zip(expanding_blocks(body), channels, strict=True):
        keep(block, torch.arange(n))


def keep(block: Any, kept: Tensor) -> None:
    """Of an inverted residual's expanded channels those of the numbers `kept` (N) remain, in place."""
    for layer in (block.conv_pw, block.conv_dw, block.bn1, block.bn2):
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.ndim:  # but for the number of batches that a batch norm has seen
                _put(layer, name, tensor[kept])
    _put(block.conv_pwl, "weight", block.conv_pwl.weight[:, kept])
    block.conv_pw.out_channels = block.conv_pwl.in_channels = len(kept)
    block.conv_dw.in_channels = block.conv_dw.out_channels = block.conv_dw.groups = len(kept)
    block.bn1.num_features = block.bn2.num_features = len(kept)


def _put(layer: nn.Module, name: str, values: Tensor) -> None:
    own = getattr(layer, name)
    values = values.detach().clone()
    setattr(layer, name, nn.Parameter(values, own.requires_grad) if isinstance(own, nn.Parameter) else values)
