"""Model reference -> a model that is ready to run, by the engine asked for."""

from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from wbc.engine import Engine, EngineChoice
from wbc.models import registry
from wbc.models.cards import ModelRef
from wbc.models.registry import LoadedModel

if TYPE_CHECKING:
    from torch import nn


@lru_cache(maxsize=8)
def ready_detector(ref: ModelRef, device: str, engine: EngineChoice, cache: Path | None = None) -> LoadedModel:
    """A detector ready to run on `device`, loaded once per process; its `engine` is the one that runs it.

    `auto` is OpenVINO where it is installed, the device is a CPU and it can run such a detector, else torch. What
    OpenVINO needs is kept in `cache`, by default the user's. Raises ModelError as `registry.load` does, and where
    `openvino` is asked for and cannot be had.
    """
    from wbc.models.inference import for_inference

    loaded = registry.load(ref, device)
    ready = replace(loaded, module=_placed(for_inference(loaded.module, loaded.device), device))
    if not _is_openvino(engine, loaded.module, device):
        return ready
    from wbc.models.openvino_network import use_openvino

    use_openvino(ready.module, loaded.module, ref.digest, cache or user_cache_path("wbc") / "openvino")
    return replace(ready, engine="openvino")


@lru_cache(maxsize=8)
def ready_classifier(ref: ModelRef, device: str, engine: Engine = "torch", cache: Path | None = None) -> LoadedModel:
    """A classifier ready to run on `device`, loaded once per process. Raises ModelError as `registry.load` does.

    Its network does the same sums in fewer steps: probabilities differ by what float32 rounds. With the `engine`
    OpenVINO, as a detector has it, that runs it if it can, and torch if not.
    """
    from wbc.models.inference import folded, fuse_rectifiers

    loaded = registry.load(ref, device)
    if engine == "openvino":
        from wbc.models.openvino_network import can_name, classifier_by_openvino

        if can_name(loaded.module):
            place = cache or user_cache_path("wbc") / "openvino"
            by_openvino = classifier_by_openvino(loaded.module, loaded.card.input_px, ref.digest, place)
            return replace(loaded, module=by_openvino, engine="openvino")
    module = folded(loaded.module)
    if device == "cpu":
        fuse_rectifiers(module)
    return replace(loaded, module=_placed(module, device))


def _placed(module: "nn.Module", device: str) -> "nn.Module":
    """A module that runs where it is called on a CPU, on a GPU in the one thread of this process that has its plans."""
    from wbc.models.one_thread import InOneThread

    return module if device == "cpu" else InOneThread(module)


def is_installed() -> bool:
    """Whether there is an OpenVINO here."""
    return find_spec("openvino") is not None


def check_engine(engine: EngineChoice) -> None:
    """Raises ModelError where OpenVINO is asked for, and is not installed here."""
    if engine == "openvino" and not is_installed():
        raise registry.ModelError("engine 'openvino' is not installed: pip install 'wbc[fast]'")


def _is_openvino(engine: EngineChoice, module: "nn.Module", device: str) -> bool:
    if engine == "torch" or (engine == "auto" and device != "cpu"):
        return False
    check_engine(engine)
    if device != "cpu":
        raise registry.ModelError(f"engine 'openvino' runs on cpu, not on {device}")
    if not is_installed():
        return False
    from wbc.models.openvino_network import can_run

    return engine == "openvino" or can_run(module)
