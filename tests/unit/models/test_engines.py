"""The detector by OpenVINO, which the extra `fast` brings, beside torch; without it, what is said."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from wbc.cells.classify import features, predict
from wbc.models import engines, registry
from wbc.models.cards import ModelError, ModelRef
from wbc.models.engines import ready_classifier, ready_detector
from wbc.models.fused_convolution import RectifiedConvolution, can_fuse
from wbc.models.last_layer import with_lower_levels
from wbc.models.one_thread import InOneThread

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra `fast` is not installed")


@pytest.fixture
def detector() -> Iterator[ModelRef]:
    yield registry.resolve("bundled:detector", "detector")[0]
    engines.ready_detector.cache_clear()


def test_without_the_extra_the_error_names_it(
    detector: ModelRef, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'wbc\[fast\]'"):
        ready_detector(detector, "cpu", "openvino", tmp_path)
    assert ready_detector(detector, "cpu", "auto", tmp_path).engine == "torch"


def test_it_runs_on_processors_alone(detector: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    loaded = registry.load(detector, "cpu")
    monkeypatch.setattr(registry, "load", lambda *_: loaded)
    with pytest.raises(ModelError, match="runs on cpu, not on cuda:1"):
        ready_detector(detector, "cuda:1", "openvino")
    assert ready_detector(detector, "cuda:1", "auto").engine == "torch"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("lower_levels", [False, True])
def test_a_ready_classifier_says_the_same_in_fewer_steps(
    device: str, lower_levels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = registry.resolve("bundled:classifier", "classifier")[0]
    loaded = registry.load(ref, "cpu")
    loaded = with_lower_levels(loaded) if lower_levels else loaded
    monkeypatch.setattr(registry, "load", lambda *_: loaded)
    ready_classifier.cache_clear()
    try:
        ready = ready_classifier(ref, device)
    finally:
        ready_classifier.cache_clear()
    parts = list(map(type, ready.module.modules()))
    assert nn.BatchNorm2d not in parts
    assert (RectifiedConvolution in parts) == (device == "cpu" and can_fuse(torch.float32))
    assert any(isinstance(part, nn.BatchNorm2d) for part in loaded.module.modules())
    crops = np.random.default_rng(0).integers(0, 255, (4, loaded.card.input_px, loaded.card.input_px, 3), np.uint8)
    np.testing.assert_allclose(predict(crops, ready), predict(crops, loaded), atol=1e-5)
    if device != "cpu":
        assert isinstance(ready.module, InOneThread)
        ready = replace(ready, module=ready.module.module)
    np.testing.assert_allclose(features(crops, ready), features(crops, loaded), atol=1e-3)


def is_whole(boxes: torch.Tensor, tile: torch.Tensor) -> torch.Tensor:
    """Which boxes keep a pixel away from the edges of a tile (3,H,W)."""
    height, width = tile.shape[1:]
    inside: torch.Tensor = (boxes[:, :2] >= 1).all(1) & (boxes[:, 2] <= width - 1) & (boxes[:, 3] <= height - 1)
    assert inside.any()
    return inside


@needs_openvino
def test_both_find_the_same_cells_in_tiles_of_any_size(detector: ModelRef, tmp_path: Path) -> None:
    from wbc.synth.smear import SmearSettings, draw_stain, render_field

    by_torch, by_openvino = (ready_detector(detector, "cpu", e, tmp_path) for e in ("torch", "openvino"))
    assert (by_torch.engine, by_openvino.engine) == ("torch", "openvino")
    rng = np.random.default_rng(3)
    field = render_field(SmearSettings(height_px=420, width_px=560, um_per_px=0.2), rng, draw_stain(rng))[0]
    pixels = torch.from_numpy(field.copy()).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        for tile in (pixels, pixels[:, :353, :411], pixels[:, 9:201, 31:260]):
            mine, other = (m.module([tile])[0] for m in (by_openvino, by_torch))
            sure = other["scores"] >= 0.8
            assert sure.sum() >= 3
            overlap = box_iou(other["boxes"][sure], mine["boxes"]).max(1).values
            assert (overlap > 0.8).all()
            # Half a pixel is a tenth of a cell that an edge cuts to a strip of 6 px: 0.88 on a Zen 4.
            assert (overlap[is_whole(other["boxes"][sure], tile)] > 0.9).all()
            assert abs(int((mine["scores"] >= 0.8).sum()) - int(sure.sum())) <= 1
    assert sys.modules["openvino_telemetry"] is None  # its maker is told of nothing


@needs_openvino
@pytest.mark.parametrize("lower_levels", [False, True])
@pytest.mark.parametrize("input_px", [128, 112])
def test_a_classifier_says_the_same_by_openvino(
    input_px: int, lower_levels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = registry.resolve("bundled:classifier", "classifier")[0]
    loaded = registry.load(ref, "cpu")
    loaded = replace(
        with_lower_levels(loaded) if lower_levels else loaded, card=replace(loaded.card, input_px=input_px)
    )
    monkeypatch.setattr(registry, "load", lambda *_: loaded)
    ready_classifier.cache_clear()
    try:
        ready = ready_classifier(ref, "cpu", "openvino", tmp_path)
    finally:
        ready_classifier.cache_clear()
    assert ready.engine == "openvino"
    for n in (5, 0, 1, 70):
        crops = np.random.default_rng(n).integers(0, 255, (n, input_px, input_px, 3), np.uint8)
        np.testing.assert_allclose(predict(crops, ready), predict(crops, loaded), atol=1e-5)


@needs_openvino
def test_it_is_converted_once_and_again_where_its_file_is_damaged(
    detector: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wbc.models import openvino_network as room

    converted: list[Path] = []
    module, convert = registry.load(detector, "cpu").module, room._convert
    example, shape = torch.zeros(1, 3, 256, 320), [-1, 3, -1, -1]

    def network() -> nn.Module:
        return room._Network(module)  # type: ignore[arg-type]

    def counted(*arguments: object) -> None:
        converted.append(tmp_path)
        convert(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "_convert", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: room._kept(network, example, shape, tmp_path / "d"), range(2))
    assert first == second
    assert len(converted) == 1
    damaged = first.with_suffix(".bin")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert room._kept(network, example, shape, tmp_path / "d") == first
    assert len(converted) == 2
    room._compiled(first, "f32")
