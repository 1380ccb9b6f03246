"""bfloat16 in the parts of a model that bear it, where the device is the faster for it."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from wbc.types import Precision


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: on a GPU from Ampere on, on a CPU with AVX-512 BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    there = torch.cpu.get_capabilities()
    return bool(there.get("avx512_bf16") or there.get("amx_bf16"))


class InBfloat16(nn.Module):
    """A part named before the module that it runs: bfloat16 inside where that pays, float32 out.

    Boxes decoded in bfloat16 would move by whole pixels, so float32 is handed on. In training its caller's autocast
    holds. `half_precision` set to False or True overrules both.
    """

    half_precision: bool | None = None

    def forward(self, inputs: Any) -> Any:
        """The module's outputs for a tensor or a list of them, as float32."""
        device = (inputs if isinstance(inputs, Tensor) else inputs[0]).device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.in_bfloat16(device)):
            outputs = super().forward(inputs)
        return in_float32(outputs)

    def in_bfloat16(self, device: torch.device) -> bool:
        """Whether it runs in bfloat16 on `device`."""
        if self.half_precision is not None:
            return self.half_precision
        return torch.is_autocast_enabled(device.type) if self.training else has_bfloat16(device)


def precision_of(modules: Iterable[nn.Module], device: torch.device) -> Precision:
    """`bfloat16` where a part of a module runs in it on `device`, else `float32`; of a GPU either says so."""
    parts = (part for module in modules for part in module.modules() if isinstance(part, InBfloat16))
    is_half = any(part.in_bfloat16(device) for part in parts)
    if device.type == "cuda":
        return "bfloat16 on cuda" if is_half else "float32 on cuda"
    return "bfloat16" if is_half else "float32"


def keep_float32_whole() -> None:
    """Let this process's convolutions in float32 be float32 on a GPU, too: unasked, torch rounds to TF32's ten bits."""
    torch.backends.cudnn.allow_tf32 = False


def in_float32(outputs: Any) -> Any:
    """Tensors as float32, within dicts, lists and tuples too."""
    match outputs:
        case dict():
            return {k: in_float32(v) for k, v in outputs.items()}
        case list() | tuple():
            return type(outputs)(map(in_float32, outputs))
    return outputs.float()
