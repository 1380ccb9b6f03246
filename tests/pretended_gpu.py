"""A GPU that this machine need not have: tensors on it hold a CPU's numbers, and refuse to meet a tensor on the CPU.

What runs on it makes no tensor in the wrong place, and brings none back unasked. Its arithmetic is the CPU's.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")


class OnGPU(Tensor):
    """A tensor on the GPU; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGPU":
        layout: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made: OnGPU = Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=GPU, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: Any, given: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """The operator's result, on the GPU. Raises RuntimeError where it meets a tensor on the CPU."""
        tensors = [t for t in tree_leaves((given, named)) if isinstance(t, Tensor)]
        if strangers := [tuple(t.shape) for t in tensors if not isinstance(t, OnGPU) and t.dim()]:
            raise RuntimeError(f"{operator}: beside tensors on the GPU, on the CPU {strangers}")
        own = {id(t.held): t for t in tensors if isinstance(t, OnGPU)}
        result = operator(*tree_map(_here, given), **tree_map(_here, dict(named or {})))
        return tree_map(lambda t: own[id(t)] if id(t) in own else OnGPU(t) if isinstance(t, Tensor) else t, result)


class _Mode(TorchFunctionMode):
    """Within, tensors are made on the GPU, brought to it, and brought back, where torch's functions are asked to."""

    def __torch_function__(
        self, function: Any, types: Any, given: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(named or {})
        if function is nn.functional.embedding_bag:  # it makes a tensor itself, where no mode sees it
            assert all(isinstance(t, OnGPU) for t in tree_leaves((given, named)) if isinstance(t, Tensor))
            return OnGPU(function(*tree_map(_here, given), **tree_map(_here, named)))
        if function is Tensor.cpu:
            return _here(given[0])
        if function is Tensor.to:
            return _brought(given, named)
        is_made = not any(isinstance(t, Tensor) for t in given) and named.get("device") is not None
        if is_made and torch.device(named["device"]).type == GPU.type:
            return OnGPU(function(*given, **named | {"device": CPU}))
        return function(*given, **named)


def _brought(given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """What `Tensor.to` returns: by a device, another tensor, or a dtype alone."""
    targets = [a for a in (*given[1:], *named.values()) if isinstance(a, str | torch.device | Tensor)]
    device = next((a.device if isinstance(a, Tensor) else torch.device(a) for a in targets), given[0].device)
    here = Tensor.to(*tree_map(_here, given), **tree_map(_here, named))
    if device.type != GPU.type:
        return here
    return given[0] if isinstance(given[0], OnGPU) and given[0].held is here else OnGPU(here)


def _here(value: Any) -> Any:
    """The same on the CPU: a tensor, or the name of a device."""
    if isinstance(value, OnGPU):
        return value.held
    return CPU if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")) else value


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """Within, there is a GPU, of a kind that has bfloat16."""
    torch._C._ensureCUDADeviceGuardSet()  # as torch's own fake tensors do where there is no driver
    with pytest.MonkeyPatch.context() as patched, _Mode():
        patched.setattr(torch.cuda, "_lazy_init", lambda: None)
        patched.setattr(torch.cuda, "get_device_capability", lambda _device=None: (9, 0))
        patched.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patched.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        yield GPU


def on_gpu(module: nn.Module) -> nn.Module:
    """A copy of a module with its weights on the GPU."""
    there = copy.deepcopy(module)
    for part in there.modules():
        for name, weights in part._parameters.items():
            if weights is not None:
                part._parameters[name] = nn.Parameter(OnGPU(weights.detach()), requires_grad=False)
        part._buffers.update({name: OnGPU(b) for name, b in part._buffers.items() if b is not None})
    return there
