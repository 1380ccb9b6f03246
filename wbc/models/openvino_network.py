"""A detector's backbone, pyramid and proposal head, or a classifier, by OpenVINO; converted once, and kept in the
user's cache."""

import copy
import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from filelock import FileLock
from timm.layers.conv2d_same import Conv2dSame
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from wbc.models.bfloat16 import has_bfloat16
from wbc.models.cards import ModelError
from wbc.models.crop_classifier import MultiLevelClassifier
from wbc.models.faster_rcnn import FasterRCNN
from wbc.models.inference import fold_batch_norms, folded
from wbc.models.pyramid import PyramidBackbone, TwoWayBackbone

FORMAT = 2  # raised where what is converted, or how, changes
NETWORK, DIGESTS = "network.xml", "digests.json"
STRIDE = 32  # sides that are its multiples are even at each level
CPU = torch.device("cpu")
logger = logging.getLogger(__name__)


def can_run(module: nn.Module) -> bool:
    """Whether OpenVINO takes over a part of the module."""
    return type(module) is FasterRCNN and isinstance(module.backbone, PyramidBackbone | TwoWayBackbone)


def use_openvino(ready: Any, original: Any, digest: str, cache: Path) -> None:
    """Have OpenVINO run backbone, pyramid and proposal head of `ready`, in place; `original` has them as they learnt.

    `digest` is the model's, by which the network is found in `cache`. It runs in bfloat16 where torch would, on as
    many threads as torch has. Raises ModelError where OpenVINO cannot run such a module, or the cache be written.
    """
    if not can_run(original):
        raise ModelError(f"engine 'openvino' runs no {type(original).__name__}: use --engine torch or auto")
    precision = "bf16" if has_bfloat16(CPU) else "f32"
    example = torch.zeros(1, 3, 256, 320)
    kept = _kept(lambda: _Network(original), example, [-1, 3, -1, -1], cache / digest[:32])
    compiled = _compiled(kept, precision)
    ready.backbone = NetworkByOpenVINO(compiled, ready.backbone.out_channels)
    ready.rpn = ProposalsOfNetwork(ready.rpn)


def can_name(module: nn.Module) -> bool:
    """Whether OpenVINO can run a classifier."""
    network = module.backbone if isinstance(module, MultiLevelClassifier) else module
    return isinstance(network, EfficientNet)


def classifier_by_openvino(module: nn.Module, input_px: int, digest: str, cache: Path) -> nn.Module:
    """A classifier of crops of `input_px` as OpenVINO runs it, in float32 as torch does: names are the same everywhere.

    `digest` is the model's, by which the network is found in `cache`. Raises ModelError where that cannot be written.
    """

    def network() -> nn.Module:
        made = folded(module)
        if input_px % STRIDE == 0:
            pad_by_constants(made)
        return made

    sides = [input_px, input_px]
    kept = _kept(network, torch.zeros(2, 3, *sides), [-1, 3, *sides], cache / digest[:32])
    return ClassifierByOpenVINO(_compiled(kept, "f32"))


class ClassifierByOpenVINO(nn.Module):
    """Crops float32 (B,3,S,S), normalised -> logits (B,C)."""

    def __init__(self, compiled: Any) -> None:
        super().__init__()
        self.compiled = compiled

    def forward(self, crops: Tensor) -> Tensor:
        """As the classifier that it was made of."""
        request = self.compiled.create_infer_request()
        outputs = request.infer([crops.contiguous().numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0])


class NetworkByOpenVINO(nn.Module):
    """In the place of a backbone: gives the maps, and after them what the proposal head says of each."""

    def __init__(self, compiled: Any, out_channels: int) -> None:
        super().__init__()
        self.compiled, self.out_channels = compiled, out_channels

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Pixels float32 (B,3,H,W), sides multiples of 32 -> by number maps, logits and deltas, channels last."""
        request = self.compiled.create_infer_request()  # one a call: several threads may look at once
        outputs = request.infer([pixels.numpy()], share_inputs=True, share_outputs=True)
        rows = [torch.from_numpy(outputs[i]) for i in range(len(self.compiled.outputs))]
        return {str(i): level.permute(0, 3, 1, 2) for i, level in enumerate(rows)}


class ProposalsOfNetwork(nn.Module):
    """In the place of a `ProposalNetwork` whose head has run already."""

    def __init__(self, proposals: nn.Module) -> None:
        super().__init__()
        self.proposals = proposals

    def forward(self, images: Any, features: dict[str, Tensor], _: None = None) -> tuple[list[Tensor], dict[str, Any]]:
        """Pictures and what `NetworkByOpenVINO` gives -> the proposals (P,4) of each."""
        outputs = list(features.values())
        n = len(outputs) // 3
        return self.proposals.propose(images, outputs[:n], (outputs[n : 2 * n], outputs[2 * n :])), {}  # type: ignore[operator]


class _Network(nn.Module):
    """What is converted: float32, from pixels to maps, logits and deltas, all channels last."""

    def __init__(self, module: FasterRCNN) -> None:
        super().__init__()
        self.backbone, self.head = copy.deepcopy(module.backbone), copy.deepcopy(module.rpn.head)
        self.backbone.half_precision = self.head.half_precision = False
        fold_batch_norms(self.backbone)
        pad_by_constants(self.backbone)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = list(self.backbone(pixels).values())
        logits, deltas = self.head(maps)
        return tuple(level.permute(0, 2, 3, 1) for level in (*maps, *logits, *deltas))


def pad_by_constants(module: nn.Module) -> None:
    """TensorFlow's paddings as they are where sides are multiples of the stride, in place.

    timm reckons them from each input's sides; constant ones become part of OpenVINO's convolution, and copy nothing.
    """
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Conv2dSame):
                setattr(parent, name, _padded(layer))


def _padded(layer: Conv2dSame) -> nn.Module:
    spans = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    down, across = (max(0, span - stride) for span, stride in zip(spans, layer.stride, strict=True))
    sizes: dict[str, Any] = {"kernel_size": layer.kernel_size, "stride": layer.stride, "dilation": layer.dilation}
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, groups=layer.groups, **sizes)
    plain.weight, plain.bias = layer.weight, layer.bias
    return nn.Sequential(nn.ZeroPad2d((across // 2, across - across // 2, down // 2, down - down // 2)), plain)


def _openvino() -> Any:
    """OpenVINO's module, without the package by which it tells its maker that it was imported, and what it converts."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def _compiled(network: Path, precision: str) -> Any:
    openvino = _openvino()
    # Unpinned, as worker processes that each pin their threads would share the first cores.
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return openvino.Core().compile_model(network, "CPU", properties)


def _kept(made: Callable[[], nn.Module], example: Tensor, shape: list[int], place: Path) -> Path:
    """The converted network in a folder that begins as `place`, whole and unchanged since it was written.

    Made and converted where it is not there; whoever comes second waits for the first. Raises ModelError where it
    cannot be written.
    """
    version, cache = _openvino().__version__.split("-")[0], place.parent
    folder = cache / f"{place.name}-{version}-{torch.__version__}-{FORMAT}".replace("+", "-")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{folder.name}.lock"):
            if not _is_whole(folder):
                _convert(made(), example, shape, folder)
    except OSError as error:
        raise ModelError(f"{cache}: the network for OpenVINO cannot be kept there: {error}") from error
    return folder / NETWORK


def _convert(module: nn.Module, example: Tensor, shape: list[int], folder: Path) -> None:
    """Write the network, then its digests: what has none, or others, is not read."""
    logger.info("converting a model for OpenVINO, once")
    openvino = _openvino()
    with warnings.catch_warnings():
        # OpenVINO reads what torch.jit.trace writes.
        warnings.simplefilter("ignore")
        network = openvino.convert_model(module.eval(), example_input=example)
    network.reshape(shape)
    folder.mkdir(exist_ok=True)
    temporary = folder / f".{uuid4().hex[:8]}.xml"
    openvino.save_model(network, temporary, compress_to_fp16=False)
    for suffix in (".bin", ".xml"):
        temporary.with_suffix(suffix).replace((folder / NETWORK).with_suffix(suffix))
    (folder / DIGESTS).write_text(json.dumps(_digests(folder)))


def _is_whole(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / DIGESTS).read_text()) == _digests(folder))
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = [(folder / NETWORK).with_suffix(suffix) for suffix in (".xml", ".bin")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
