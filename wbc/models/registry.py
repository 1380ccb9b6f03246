"""Model reference -> module and card: `bundled:NAME`, a folder, `models:/NAME@ALIAS` (MLflow). Nothing is unpickled.

torch takes seconds to import, and a card can be read without it: what needs torch imports it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from upath import UPath

from wbc.engine import Engine
from wbc.models.cards import ModelCard, ModelError, ModelRef, Task
from wbc.storage.atomic import staged

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

__all__ = [
    "BUNDLED",
    "CARD",
    "WEIGHTS",
    "LoadedModel",
    "ModelError",
    "ModelRef",
    "bundled_models",
    "load",
    "load_weights",
    "locate",
    "read_card",
    "resolve",
    "resolve_device",
    "save",
]
WEIGHTS = "model.safetensors"
CARD = "card.json"
BESIDE = "beside."  # begins the names of arrays that are stored with a module's weights and are none of them
REFERENCE_CELLS = "reference_cells.safetensors"
BUNDLED = Path(__file__).parent / "weights"
REGISTERED = "models:/"


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A module in eval mode on its device, with its card; `beside` are arrays stored with its weights, by name.

    `engine` is what runs it, or most of it.
    """

    module: "nn.Module"
    card: ModelCard
    device: "torch.device"
    beside: Mapping[str, "NDArray[Any]"] = field(default_factory=dict)
    engine: Engine = "torch"


def bundled_models() -> list[str]:
    """The references of the models that come with wbc."""
    return [f"bundled:{path.parent.name}" for path in sorted(BUNDLED.glob(f"*/{CARD}"))]


def locate(reference: str) -> Path:
    """The folder of a model. Raises ModelError, naming the reference, where there is none."""
    if reference.startswith("bundled:"):
        folder = BUNDLED / reference.removeprefix("bundled:")
        if not (folder / CARD).is_file():
            raise ModelError(f"no bundled model {reference!r}; there are {', '.join(bundled_models())}")
        return folder
    if reference.startswith(REGISTERED):
        from wbc.models.tracking import fetch  # MLflow is heavy, and only for those who keep a registry

        return fetch(reference)
    folder = Path(reference)
    if not (folder / CARD).is_file():
        raise ModelError(f"no model {reference!r}: {folder / CARD} does not exist")
    return folder


def read_card(reference: str) -> ModelCard:
    """A model's card, the digests of its files checked. Raises ModelError naming file and reason."""
    folder = locate(reference)
    try:
        values = json.loads((folder / CARD).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / CARD}: {error}") from error
    try:
        card = ModelCard.from_json(values, str(folder / CARD))
    except ValueError as error:
        raise ModelError(str(error)) from error
    _check_file(folder / WEIGHTS, card.sha256)
    if card.reference_sha256:
        _check_file(folder / REFERENCE_CELLS, card.reference_sha256)
    return card


def _check_file(path: Path, sha256: str) -> None:
    """Raises ModelError unless the file is the one that its model's card names."""
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    stat = path.stat()
    digest = _digest(str(path), stat.st_size, stat.st_mtime_ns)
    if digest != sha256:
        raise ModelError(f"{path}: sha256 is {digest[:12]}…, its card says {sha256[:12]}…")


@lru_cache(maxsize=16)
def _digest(path: str, _size: int, _modified: int) -> str:
    with open(path, "rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()


def resolve(reference: str, task: Task) -> tuple[ModelRef, ModelCard]:
    """A reference pinned to what it means now, with its card. Raises ModelError where it is no model for `task`.

    An alias of a registry becomes the version that it stands for: who has the result never meets another.
    """
    if reference.startswith(REGISTERED):
        from wbc.models.tracking import pinned

        reference = pinned(reference)
    card = read_card(reference)
    if card.task != task:
        raise ModelError(f"{reference!r} is a {card.task}, not a {task}")
    return ModelRef(reference, card.digest), card


@lru_cache(maxsize=8)
def load(ref: ModelRef, device: str) -> LoadedModel:
    """The model, float32 on `device`, loaded once per process; on a GPU that is float32 to the last bit, no TF32.

    Raises ModelError where the card describes no model, the weights do not fit it, or are not those that `ref` was
    pinned to.
    """
    import torch

    from wbc.models import builders
    from wbc.models.bfloat16 import keep_float32_whole

    card = read_card(ref.reference)
    if card.digest != ref.digest:
        raise ModelError(
            f"{ref.reference!r} is {card.digest[:12]}… here, the count began with {ref.digest[:12]}…: "
            f"models differ between machines or changed meanwhile"
        )
    folder = locate(ref.reference)
    try:
        built = builders.build(card)
    except ValueError as error:
        raise ModelError(f"{folder / CARD}: {error}") from error
    module = load_weights(built, folder / WEIGHTS)
    module.requires_grad_(False)
    if torch.device(device).type == "cuda":
        keep_float32_whole()
    return LoadedModel(module.to(device).eval(), card, torch.device(device), read_beside(folder / WEIGHTS))


def resolve_device(device: str) -> str:
    """`auto` as this machine has it. Raises ValueError where CUDA is asked for and missing."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: no CUDA device here")
    return device


def load_weights(module: "nn.Module", path: Path) -> "nn.Module":
    """Fill `module` from a safetensors file. Raises ModelError naming the tensors that do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(BESIDE)}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: {error}") from error
    own = module.state_dict()
    differs = (k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    wrong = sorted({*differs, *(own.keys() ^ state.keys())})
    if wrong:
        raise ModelError(f"{path} does not fit its card: {len(wrong)} tensors differ, first {wrong[0]!r}")
    module.load_state_dict(state)
    return module


def read_beside(path: Path) -> dict[str, "NDArray[Any]"]:
    """The arrays in a safetensors file that are none of the module's weights, float32, by the names they were saved by.

    Raises OSError or SafetensorError where the file cannot be read.
    """
    import numpy as np
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        names = [name for name in file.keys() if name.startswith(BESIDE)]  # noqa: SIM118  # no dict
        return {name.removeprefix(BESIDE): file.get_tensor(name).astype(np.float32) for name in names}


def save(
    folder: Path, module: "nn.Module", card: ModelCard, beside: Mapping[str, "NDArray[Any]"] = MappingProxyType({})
) -> ModelCard:
    """Write a model as fp16 safetensors with its card, whose sha256 is filled in; returns that card.

    Arrays `beside` the module's weights go into the same file, and are what `LoadedModel.beside` holds. Reference cells
    are of other weights: `keep_reference_cells` adds those of these. Raises ValueError where a weight is not finite as
    fp16.
    """
    import torch
    from safetensors.torch import save as serialize

    state = {}
    for name, tensor in module.state_dict().items():
        value = tensor.detach().cpu().contiguous()
        state[name] = value.half() if value.is_floating_point() else value
        if not torch.isfinite(state[name]).all():
            raise ValueError(f"{name} is not finite as fp16")
    state |= {f"{BESIDE}{name}": torch.from_numpy(array).half().contiguous() for name, array in beside.items()}
    weights = serialize(state)
    card = replace(card, sha256=sha256_of(weights), reference_sha256="")
    with staged({UPath(folder / WEIGHTS): weights, UPath(folder / CARD): card_content(card)}, durable=False):
        pass
    return card


def card_content(card: ModelCard) -> bytes:
    """The content of a card's file."""
    return (json.dumps(card.to_json(), indent=2, ensure_ascii=False) + "\n").encode()


def sha256_of(content: bytes) -> str:
    """The SHA-256 of a file's content, hexadecimal."""
    return hashlib.sha256(content).hexdigest()
