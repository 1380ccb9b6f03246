"""A cell is looked at where it lies, and named by the taxonomy's own types."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from wbc.cells.appearance import KnownLooks, appearance
from wbc.cells.classify import classify, predict
from wbc.cells.crop import cut_square
from wbc.cells.naming import name_cells, names_given
from wbc.models import builders
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.taxonomy import load_taxonomy
from wbc.types import Threshold

HALF = (0.5, 0.5, 0.5)
SMALL_NET = {"backbone": "test_efficientnet"}
CLASSIFIER = ModelCard("small", "1", "classifier", "crop_classifier", SMALL_NET, ("a", "b"), 0.2, 32, HALF, HALF, "")


class Reddest(nn.Module):
    """Class 0 where the middle pixel is redder than it is blue, class 1 otherwise; sure by how much."""

    def forward(self, crops: Tensor) -> Tensor:
        middle = crops[:, :, crops.shape[2] // 2, crops.shape[3] // 2]
        return torch.stack([middle[:, 0], middle[:, 2]], 1)


def named(module: nn.Module) -> LoadedModel:
    return LoadedModel(module, CLASSIFIER, torch.device("cpu"))


def test_each_cell_is_seen_in_the_middle_of_its_own_box() -> None:
    field = np.full((200, 300, 3), 128, np.uint8)
    boxes = np.array([[x, y, x + 20, y + 20] for x in (0, 60, 140, 280) for y in (0, 90, 180)] * 7, np.float32)
    for i, (x0, y0, x1, y1) in enumerate(boxes[:12].astype(int)):
        field[y0:y1, x0:x1] = (255, 0, 0) if i % 3 else (0, 0, 255)
    chances = classify(field, boxes, 0.2, named(Reddest())).probabilities
    assert chances.argmax(1).tolist() == [0 if i % 3 else 1 for i in range(12)] * 7
    np.testing.assert_allclose(chances.max(1), 1 / (1 + np.exp(-2)), rtol=1e-6)


class Reach(nn.Module):
    """Class 0 as far as the crop's rim is dark."""

    def forward(self, crops: Tensor) -> Tensor:
        return torch.stack([-crops[:, 0, 0, 0] * 20, crops[:, 0, 0, 0] * 20], 1)


@pytest.mark.parametrize("um_per_px", [0.1, 0.2, 0.4])
def test_the_window_has_its_size_in_micrometres_at_any_scale(um_per_px: float) -> None:
    window_px = 32 * 0.2 / um_per_px
    y, x = np.mgrid[:200, :200]
    for factor, expected in (
        (0.85, 0),
        (1.15, 1),
    ):  # a dark square a little larger, then a little smaller, than the window
        dark = np.maximum(abs(x - 99.5), abs(y - 99.5)) <= window_px / factor / 2
        field = np.where(dark[..., None], 0, 255).repeat(3, 2).astype(np.uint8)
        chances = classify(field, np.array([[97, 97, 103, 103]], np.float32), um_per_px, named(Reach())).probabilities
        assert chances.argmax(1).tolist() == [expected]


def test_a_crop_and_its_mirror_image_are_named_alike() -> None:
    torch.manual_seed(0)
    model = named(builders.build(CLASSIFIER))
    crops: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    chances = predict(crops, model)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(chances, predict(crops[:, :, ::-1], model), atol=1e-6)


def test_no_boxes_no_names() -> None:
    chances = classify(
        np.zeros((50, 50, 3), np.uint8), np.zeros((0, 4), np.float32), 0.2, named(Reddest())
    ).probabilities
    assert chances.shape == (0, 2)
    names = name_cells(chances, ("lymphocyte", "monocyte"), load_taxonomy("blood"), 0.4)
    assert len(names.types) == len(names.scores) == len(names.second_types) == len(names.second_scores) == 0


# Naming

WITHOUT_PRIORS = replace(load_taxonomy("blood"), priors=())
CLASSES = ("band_neutrophil", "segmented_neutrophil", "myelocyte", "promyelocyte", "eosinophil")


@pytest.mark.parametrize(
    ("chances", "name", "score", "second", "second_score"),
    [
        ((0.3, 0.5, 0.1, 0.1, 0.0), "segmented_neutrophil", 0.5, "band_neutrophil", 0.3),
        ((0.38, 0.23, 0.0, 0.03, 0.36), "neutrophil", 0.61, "eosinophil", 0.36),
        ((0.29, 0.28, 0.01, 0.03, 0.39), "neutrophil", 0.57, "eosinophil", 0.39),
        ((0.05, 0.0, 0.35, 0.25, 0.35), "immature_granulocyte", 0.6, "eosinophil", 0.35),
        ((0.2, 0.15, 0.15, 0.15, 0.35), "unidentified", 0.35, "eosinophil", 0.35),
    ],
)
def test_a_cell_between_two_types_of_one_parent_has_the_parents_name(
    chances: tuple[float, ...], name: str, score: float, second: str, second_score: float
) -> None:
    names = name_cells(np.array([chances], np.float32), CLASSES, WITHOUT_PRIORS, 0.4)
    assert (names.types.tolist(), names.second_types.tolist()) == ([name], [second])
    assert names.scores == pytest.approx([score], abs=1e-6)
    assert names.second_scores == pytest.approx([second_score], abs=1e-6)


@pytest.mark.parametrize("threshold", [0.4, {"neutrophil": 0.5, "eosinophil": 0.85, "lymphocyte": 0.1, "rbc": 0.1}])
@pytest.mark.parametrize("classes", [CLASSES, CLASSES[:2]])
def test_names_that_can_be_given_are_those_that_are(classes: tuple[str, ...], threshold: Threshold) -> None:
    chances = np.random.default_rng(0).dirichlet(np.full(len(classes), 0.3), 2000).astype(np.float32)
    named = name_cells(chances, classes, WITHOUT_PRIORS, threshold)
    assert set(named.types) - {"unidentified"} == names_given(classes, WITHOUT_PRIORS, threshold)


def test_a_parent_of_all_classes_names_nothing() -> None:
    chances = np.array([[0.5, 0.5]], np.float32)
    names = name_cells(chances, CLASSES[:2], load_taxonomy("blood"), 0.6)
    assert (names.types.tolist(), names.scores.tolist()) == (["unidentified"], [0.5])


@pytest.mark.parametrize(
    ("chances", "name", "score", "second"),
    [
        ((0.1, 0.5, 0.2, 0.0, 0.2), "neutrophil", 0.6, "myelocyte"),
        ((0.3, 0.19, 0.0, 0.0, 0.51), "unidentified", 0.51, "eosinophil"),
        ((0.0, 0.1, 0.0, 0.0, 0.9), "eosinophil", 0.9, "segmented_neutrophil"),
        ((0.0, 0.0, 0.96, 0.04, 0.0), "unidentified", 0.96, "myelocyte"),
    ],
)
def test_with_a_threshold_for_each_name_no_other_name_is_given(
    chances: tuple[float, ...], name: str, score: float, second: str
) -> None:
    """`lymphocyte` is no class, and this blood knows no `macrophage`: neither is in the way."""
    thresholds = {"neutrophil": 0.5, "eosinophil": 0.85, "lymphocyte": 0.1, "macrophage": 0.1}
    names = name_cells(np.array([chances], np.float32), CLASSES, WITHOUT_PRIORS, thresholds)
    assert (names.types.tolist(), names.second_types.tolist()) == ([name], [second])
    assert names.scores == pytest.approx([score], abs=1e-6)


def test_of_names_that_another_taxonomy_takes_for_one_the_highest_threshold_holds() -> None:
    classes, both = ("band_neutrophil", "segmented_neutrophil", "lymphocyte"), np.array([[0.4, 0.4, 0.2]], np.float32)
    thresholds = {"band_neutrophil": 0.5, "segmented_neutrophil": 0.9}
    names = name_cells(np.concatenate([both, [[0.5, 0.45, 0.05]]]), classes, load_taxonomy("wang2021"), thresholds)
    assert names.types.tolist() == ["unidentified", "granulocyte"]


def test_aliases_of_one_type_are_summed_before_the_threshold() -> None:
    chances = np.array([[0.38, 0.37, 0.05, 0.05, 0.15], [0.1, 0.1, 0.1, 0.0, 0.7]], np.float32)
    classes = ("band_neutrophil", "segmented_neutrophil", "lymphocyte", "monocyte", "erythroblast")
    names = name_cells(chances, classes, load_taxonomy("wang2021"), 0.4)
    assert names.types.tolist() == ["granulocyte", "erythrocyte"]
    assert names.scores == pytest.approx([0.75, 0.7], abs=1e-6)
    assert names.second_types.tolist() == ["erythrocyte", "granulocyte"]
    assert names.second_scores == pytest.approx([0.15, 0.2], abs=1e-6)


def test_classes_that_all_mean_one_type_name_it_and_no_second() -> None:
    names = name_cells(np.array([[0.5, 0.5]], np.float32), CLASSES[:2], load_taxonomy("wang2021"), 0.6)
    assert (names.types.tolist(), names.scores.tolist()) == (["granulocyte"], [1.0])
    assert names.second_types.tolist() == [None]
    assert np.isnan(names.second_scores).all()


@given(arrays(np.float16, (7, 5), elements=st.floats(0, 1, width=16)), st.floats(0, 1))
def test_a_cells_name_does_not_hang_on_the_cells_beside_it(chances: NDArray[np.float16], threshold: float) -> None:
    together = name_cells(chances, CLASSES, load_taxonomy("blood"), threshold)
    for i in range(len(chances)):
        alone = name_cells(chances[i : i + 1], CLASSES, load_taxonomy("blood"), threshold)
        assert (alone.types[0], alone.scores[0]) == (together.types[i], together.scores[i])
        assert (alone.second_types[0], alone.second_scores[0]) == (together.second_types[i], together.second_scores[i])


class Nothing(nn.Module):
    """Not a number for the reddest crops, as a broken model gives."""

    def forward(self, crops: Tensor) -> Tensor:
        middle = crops[:, :2, crops.shape[2] // 2, crops.shape[3] // 2]
        return torch.where(middle > 0.9, torch.nan, middle)


def test_probabilities_that_are_no_numbers_are_an_error() -> None:
    field = np.full((200, 300, 3), 128, np.uint8)
    field[:40, :40, 0] = 255
    boxes = np.array([[10, 10, 30, 30], [110, 110, 130, 130]], np.float32)
    with pytest.raises(FloatingPointError, match="1 of 2 cells have probabilities that are not numbers"):
        classify(field, boxes, 0.2, named(Nothing()))


def test_a_classifier_that_knows_looks_tells_how_far_each_cell_is_from_them() -> None:
    rng = np.random.default_rng(0)
    field = rng.integers(100, 200, (200, 300, 3), np.uint8)
    boxes = np.array([[x, 90, x + 20, 110] for x in (40, 140, 240)], np.float32)
    crops = np.stack([cut_square(field, x + 10, 100, 32, 32) for x in (40, 140, 240)])
    model = replace(named(Reddest()), beside=KnownLooks.of([np.tile(appearance(crops), (8, 1))]).arrays())
    assert np.isnan(classify(field, boxes, 0.2, named(Reddest())).distances).all()
    same, bright = classify(field, boxes, 0.2, model), classify(field // 2, boxes, 0.2, model)
    assert same.distances.shape == (3,)
    assert (bright.distances > same.distances).all()


def test_a_prior_makes_what_is_rare_need_more_than_a_slight_likeness() -> None:
    classes = ("lymphocyte", "erythroblast")
    chances = np.array([[0.4, 0.6], [0.1, 0.9]], np.float32)
    in_blood = name_cells(chances, classes, load_taxonomy("blood"), 0.4)
    in_marrow = name_cells(chances, classes, load_taxonomy("marrow_icsh"), 0.4)
    assert in_blood.types.tolist() == ["lymphocyte", "erythroblast"]
    assert in_marrow.types.tolist() == ["erythroblast", "erythroblast"]
    assert in_blood.scores == pytest.approx([0.4 / 0.58, 0.27 / 0.37], abs=1e-6)
    assert in_marrow.scores == pytest.approx([0.6, 0.9], abs=1e-6)
