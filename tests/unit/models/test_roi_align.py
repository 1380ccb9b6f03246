"""RoIAlign as a weighted sum of rows: the values of torchvision's kernel, which stays where a gradient is wanted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from wbc.models.roi_align import PyramidRoIAlign, padded


def maps_of(pictures: int, channels: int = 5, height: int = 256, width: int = 192) -> dict[str, Tensor]:
    sizes = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    maps = [torch.randn(pictures, channels, *size).contiguous(memory_format=torch.channels_last) for size in sizes]
    return {str(i): level for i, level in enumerate(maps)}


def both(samples: int, bins: int = 7) -> tuple[MultiScaleRoIAlign, PyramidRoIAlign]:
    def make(kind: type[MultiScaleRoIAlign]) -> MultiScaleRoIAlign:
        return kind(list("0123"), bins, samples, canonical_scale=68, canonical_level=4)

    ours = make(PyramidRoIAlign)
    assert isinstance(ours, PyramidRoIAlign)
    return make(MultiScaleRoIAlign), ours


corners = st.floats(-40, 300, width=32)
sides = st.floats(0, 260, width=32)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.tuples(corners, corners, sides, sides), max_size=6), min_size=1, max_size=3),
    st.integers(1, 3),
    st.integers(0, 99),
)
def test_regions_of_any_place_and_size_have_the_values_of_torchvision(
    regions: list[list[tuple[float, float, float, float]]], samples: int, seed: int
) -> None:
    torch.manual_seed(seed)
    maps, shapes = maps_of(len(regions)), [(256, 192)] * len(regions)
    boxes = [torch.tensor([(x, y, x + w, y + h) for x, y, w, h in of]).reshape(-1, 4) for of in regions]
    theirs, ours = both(samples)
    with torch.inference_mode():
        torch.testing.assert_close(ours(maps, boxes, shapes), theirs(maps, boxes, shapes), atol=2e-3, rtol=1e-3)


@torch.inference_mode()
def test_the_first_regions_have_the_values_that_they_have_later() -> None:
    maps, shapes = maps_of(2), [(256, 192)] * 2
    boxes = [torch.tensor([[10.0, 10.0, 60.0, 70.0], [0.0, 0.0, 190.0, 250.0]]), torch.zeros(0, 4)]
    _, ours = both(1)
    first = ours(maps, boxes, shapes)
    assert torch.equal(first, ours(maps, boxes, shapes))
    assert ours.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize("shape", [(36, 36), (45, 200), (66, 1), (33, 67)])
@pytest.mark.parametrize("learns", [False, True])
def test_a_small_first_picture_is_no_reason_to_read_all_others_at_a_wrong_scale(
    shape: tuple[int, int], learns: bool
) -> None:
    _, ours = both(1)
    height, width = padded(shape)
    with torch.set_grad_enabled(learns):
        ours(maps_of(1, 5, height, width), [torch.tensor([[0.0, 0.0, 1.0, 20.0]])], [shape])
    assert ours.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_no_region_is_no_value() -> None:
    _, ours = both(1)
    with torch.inference_mode():
        for _ in range(2):
            assert ours(maps_of(2), [torch.zeros(0, 4)] * 2, [(256, 192)] * 2).shape == (0, 5, 7, 7)


def test_a_gradient_reaches_the_maps() -> None:
    _, ours = both(1)
    maps = {name: level.requires_grad_() for name, level in maps_of(1).items()}
    boxes = [torch.tensor([[10.0, 10.0, 60.0, 70.0], [0.0, 0.0, 190.0, 250.0]])]
    ours(maps, boxes, [(256, 192)])
    ours(maps, boxes, [(256, 192)]).sum().backward()
    assert any(level.grad is not None and level.grad.abs().sum() > 0 for level in maps.values())


@pytest.mark.parametrize("samples", [0, -1])
def test_samples_that_follow_a_regions_size_are_torchvisions(samples: int) -> None:
    maps, boxes, shapes = maps_of(1), [torch.tensor([[10.0, 10.0, 60.0, 70.0]])], [(256, 192)]
    theirs, ours = both(samples)
    with torch.inference_mode():
        ours(maps, boxes, shapes)
        torch.testing.assert_close(ours(maps, boxes, shapes), theirs(maps, boxes, shapes))
