"""The models' code on a GPU that is only pretended: no tensor is made on the CPU that meets one on the GPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended_gpu import OnGPU, on_gpu, pretended_gpu
from torch import nn

from wbc.cells.classify import BATCH, classify, classify_together, features, predict
from wbc.cells.detect import detect, run_tiles
from wbc.cells.tiles import TileSettings
from wbc.counting.worker import Models
from wbc.models import builders, registry
from wbc.models.bfloat16 import precision_of
from wbc.models.cards import ModelCard
from wbc.models.inference import for_inference
from wbc.models.registry import LoadedModel
from wbc.models.roi_align import MapRows, pool_rows

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)
SMALL = {"pyramid_channels": 16, "head_width": 32, "most_proposals": 400}
DETECTOR = ModelCard("d", "1", "detector", "faster_rcnn", SMALL, ("rbc", "platelet", "wbc"), 0.2, 0, HALF, HALF, "")
NET = {"backbone": "test_efficientnet"}
CLASSIFIER = ModelCard("c", "1", "classifier", "crop_classifier", NET, ("a", "b"), 0.2, 32, HALF, HALF, "")


def model(card: ModelCard) -> LoadedModel:
    torch.manual_seed(1)
    module = builders.build(card).requires_grad_(False)
    if card.task == "detector":
        nn.init.normal_(module.rpn.head.cls_logits.weight, std=0.5)  # else no place is surer than another
    return LoadedModel(module, card, CPU)


def test_a_tensor_on_the_cpu_meets_none_on_the_gpu() -> None:
    with pretended_gpu() as gpu:
        there = torch.ones(3, device=gpu)
        assert (there + 1).device == gpu
        assert torch.equal((there * 2).cpu(), torch.full((3,), 2.0))
        with pytest.raises(RuntimeError, match="beside tensors on the GPU"):
            there + torch.ones(3)
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


def test_a_detector_finds_on_a_gpu_what_it_finds_on_the_cpu() -> None:
    loaded = model(DETECTOR)
    for part in loaded.module.modules():
        if hasattr(part, "half_precision"):
            part.half_precision = True
    tiles = [np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8) for i in range(2)]
    here = replace(loaded, module=for_inference(loaded.module, CPU))
    with pretended_gpu() as gpu:
        there = replace(loaded, module=on_gpu(for_inference(loaded.module, gpu)), device=gpu)
        assert precision_of([there.module], gpu) == "bfloat16 on cuda"
        found = run_tiles(tiles, there, 0.0)
    for ours, theirs in zip(run_tiles(tiles, here, 0.0), found, strict=True):
        assert len(ours) > 20
        apart = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(2)  # in any order: some scores are all but equal
        assert len(ours) == len(theirs)
        assert apart.min(1).max() < 0.1
        np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-3)


@pytest.mark.parametrize("um_per_px", [0.2, 0.15])
def test_fields_that_a_gpu_scales_show_it_the_same_cells(um_per_px: float) -> None:
    loaded = model(DETECTOR)
    fields = [np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8) for i in range(2)]
    tiles = TileSettings(tile_px=64, overlap_um=4)
    here = detect(fields, loaded, um_per_px, 0.0, tiles)
    with pretended_gpu() as gpu:
        there = replace(loaded, module=on_gpu(loaded.module), device=gpu)
        found = detect(fields, there, um_per_px, 0.0, tiles)
    for ours, theirs in zip(here, found, strict=True):
        assert len(ours) > 5
        apart = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(2)
        assert np.median(apart.min(1)) < 0.5  # noise is scaled to within 1 of 255, and makes no cells


def test_cells_of_several_fields_are_named_together_as_alone() -> None:
    loaded = model(CLASSIFIER)
    fields = [np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8) for i in range(3)]
    boxes = [np.array([[10, 10, 30, 30], [50, 40, 70, 60]], np.float32), np.zeros((0, 4), np.float32)]
    boxes.append(np.array([[90, 60, 110, 80]], np.float32))
    alone = [classify(pixels, own, 0.2, loaded).probabilities for pixels, own in zip(fields, boxes, strict=True)]
    with pretended_gpu() as gpu:
        there = replace(loaded, module=on_gpu(loaded.module), device=gpu)
        together = classify_together(fields, boxes, 0.2, there)
    assert [len(part.distances) for part in together] == [2, 0, 1]
    for ours, theirs in zip(alone, together, strict=True):
        np.testing.assert_allclose(theirs.probabilities, ours, atol=1e-6)


def test_a_classifier_says_on_a_gpu_what_it_says_on_the_cpu() -> None:
    loaded = model(CLASSIFIER)
    crops = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    with pretended_gpu() as gpu:
        there = replace(loaded, module=on_gpu(loaded.module), device=gpu)
        np.testing.assert_allclose(predict(crops, there), predict(crops, loaded), atol=1e-6)
        np.testing.assert_allclose(features(crops, there), features(crops, loaded), atol=1e-5)


def shapes_of(module: nn.Module) -> list[tuple[int, ...]]:
    """Where the shapes of all that comes to a module's first convolution are written."""
    seen: list[tuple[int, ...]] = []
    first = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
    return seen


def test_a_gpu_meets_the_same_shapes_whatever_the_number_of_cells() -> None:
    loaded = model(CLASSIFIER)
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    with pretended_gpu() as gpu:
        there = replace(loaded, module=on_gpu(loaded.module), device=gpu)
        seen = shapes_of(there.module)
        for n in (1, 2, 63, 64, 65, 130):
            boxes = np.tile(np.array([[10, 10, 30, 30]], np.float32), (n, 1))
            chances = classify(pixels, boxes, 0.2, there).probabilities
            np.testing.assert_allclose(chances, np.tile(chances[:1], (n, 1)), atol=1e-6)
    assert set(seen) == {(2 * BATCH, 3, 32, 32)}
    assert len(seen) == 1 + 1 + 1 + 1 + 2 + 3


def test_a_gpu_meets_few_shapes_whatever_the_number_of_tiles() -> None:
    loaded = model(DETECTOR)
    fields = [np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8) for i in range(13)]
    with pretended_gpu() as gpu:
        there = replace(loaded, module=on_gpu(loaded.module), device=gpu)
        seen = shapes_of(there.module)
        assert len(detect(fields, there, 0.2, 0.0, batch_px=11 * 64 * 64)) == len(fields)
    assert [shape[0] for shape in seen] == [8, 4, 1]
    seen = shapes_of(loaded.module)
    detect(fields, loaded, 0.2, 0.0, batch_px=11 * 64 * 64)
    assert [shape[0] for shape in seen] == [11, 2]


def test_float32_is_float32_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    registry.save(tmp_path, model(CLASSIFIER).module, CLASSIFIER)
    ref = registry.resolve(str(tmp_path), "classifier")[0]
    registry.load(ref, "cpu")
    assert torch.backends.cudnn.allow_tf32  # what a CPU does not ask for stays as it was
    to = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda m, *there, **how: on_gpu(m) if there else to(m, **how))
    with pretended_gpu() as gpu:
        loaded = registry.load(ref, "cuda")
        assert precision_of([loaded.module], gpu) == "float32 on cuda"
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("half", "expected"), [(False, "float32"), (True, "bfloat16")])
def test_a_row_tells_a_gpu_from_a_cpu(half: bool, expected: str) -> None:
    detector = model(DETECTOR)
    for part in detector.module.modules():
        if hasattr(part, "half_precision"):
            part.half_precision = half
    there = Models(replace(detector, device=torch.device("cuda:0")), None)
    assert Models(detector, model(CLASSIFIER)).precision == expected
    assert there.precision == f"{expected} on cuda"


@torch.inference_mode()
def test_rows_are_pooled_on_the_device_that_they_are_on() -> None:
    shapes, scales = [torch.Size((2, 4, 16, 12)), torch.Size((2, 4, 8, 6))], (0.25, 0.125)
    table = torch.randn(sum(n * h * w for n, _, h, w in shapes), 4)
    boxes = [torch.tensor([[1.0, 2.0, 30.0, 41.0]]), torch.tensor([[0.0, 0.0, 47.0, 63.0], [3.0, 3.0, 9.0, 9.0]])]
    levels = torch.tensor([0, 1, 0])
    expected = pool_rows(MapRows(table, shapes, scales), levels, boxes, (7, 7), 1)
    with pretended_gpu() as gpu:
        rows = MapRows(table.to(gpu), shapes, scales)
        pooled = pool_rows(rows, levels.to(gpu), [b.to(gpu) for b in boxes], (7, 7), 1)
        assert isinstance(pooled, OnGPU)
        assert torch.equal(pooled.cpu(), expected)
