"""A classifier whose last layer is also told what its network sees lower down."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wbc.cells.classify import features, predict
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.crop_classifier import MultiLevelClassifier, levels_below
from wbc.models.last_layer import feature_groups, last_layer, with_last_layer, with_lower_levels
from wbc.models.registry import LoadedModel
from wbc.training.start import start_from_model

HALF = (0.5, 0.5, 0.5)
CARD = ModelCard(
    *("small", "1", "classifier", "crop_classifier", {"backbone": "test_efficientnet"}, ("a", "b", "c")),
    *(0.2, 32, HALF, HALF, ""),
)


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(builders.build(CARD).eval(), CARD, torch.device("cpu"))


@pytest.fixture(scope="module")
def fuller(small: LoadedModel) -> LoadedModel:
    return with_lower_levels(small)


def crops(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)


def test_what_is_new_weighs_nothing_yet(small: LoadedModel, fuller: LoadedModel) -> None:
    np.testing.assert_allclose(predict(crops(5), fuller), predict(crops(5), small), atol=1e-6)
    assert fuller.card.arguments == {"backbone": "test_efficientnet", "lower_levels": True}
    assert with_lower_levels(fuller) is fuller
    assert not isinstance(small.module, MultiLevelClassifier)


def test_features_are_the_network_s_own_and_three_of_each_lower_channel(
    small: LoadedModel, fuller: LoadedModel
) -> None:
    own = last_layer(small).in_features
    assert feature_groups(fuller) == (own, 32, 32, 32, 48, 48, 48)
    assert feature_groups(small) == (own,)
    found = features(crops(4), fuller)
    assert found.shape == (4, 2, own + 240)
    np.testing.assert_allclose(found[..., :own], features(crops(4), small), atol=1e-6)
    assert features(crops(0), fuller).shape == (0, 2, own + 240)


def test_means_spreads_and_middles_are_those_of_the_maps(fuller: LoadedModel) -> None:
    module = fuller.module
    assert isinstance(module, MultiLevelClassifier)
    x = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        rows = module.forward_features(x)
        _, (eighth, _) = module.backbone.forward_intermediates(x, levels_below(module.backbone))
    assert eighth.shape == (2, 32, 8, 12)
    start = feature_groups(fuller)[0]
    by_hand = eighth.flatten(2)
    torch.testing.assert_close(rows[:, start : start + 32], by_hand.mean(2))
    torch.testing.assert_close(rows[:, start + 32 : start + 64], by_hand.std(2, correction=0))
    torch.testing.assert_close(rows[:, start + 64 : start + 96], eighth[:, :, 2:6, 3:9].flatten(2).mean(2))


def test_odd_sizes_and_no_crop_at_all(fuller: LoadedModel) -> None:
    with torch.inference_mode():
        assert fuller.module(torch.rand(1, 3, 33, 47)).shape == (1, 3)
        assert fuller.module(torch.zeros(0, 3, 32, 32)).shape == (0, 3)


def test_a_gradient_reaches_every_parameter() -> None:
    module = builders.build(replace(CARD, arguments={"backbone": "test_efficientnet", "lower_levels": True}))
    module(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_saved_and_loaded_it_says_the_same(fuller: LoadedModel, tmp_path: Path) -> None:
    width = sum(feature_groups(fuller))
    taught = with_last_layer(fuller, np.random.default_rng(1).normal(0, 0.1, (3, width)), np.zeros(3))
    registry.save(tmp_path / "taught", taught, fuller.card)
    loaded = registry.load(registry.resolve(str(tmp_path / "taught"), "classifier")[0], "cpu")
    expected = predict(crops(6), replace(fuller, module=taught))
    np.testing.assert_allclose(predict(crops(6), loaded), expected, atol=5e-3)  # weights are kept as float16
    assert expected.std() > 0.01


def test_a_recipe_goes_on_from_its_network(small: LoadedModel, fuller: LoadedModel, tmp_path: Path) -> None:
    width, own = sum(feature_groups(fuller)), feature_groups(fuller)[0]
    weight = np.random.default_rng(1).normal(0, 0.1, (3, width)).astype(np.float16).astype(np.float32)
    registry.save(tmp_path / "taught", with_last_layer(fuller, weight, np.zeros(3)), fuller.card)
    module = builders.build(CARD)
    ref = start_from_model(module, CARD, str(tmp_path / "taught"))
    assert ref.reference == str(tmp_path / "taught")
    begun = LoadedModel(module.eval(), CARD, torch.device("cpu"))
    np.testing.assert_array_equal(last_layer(begun).weight.detach().numpy(), weight[:, :own])
    np.testing.assert_allclose(features(crops(3), begun), features(crops(3), small), atol=2e-2)


def test_a_recipe_with_lower_levels_begins_with_the_answers_of_one_without(small: LoadedModel, tmp_path: Path) -> None:
    registry.save(tmp_path / "small", small.module, CARD)
    card = replace(CARD, arguments={**CARD.arguments, "lower_levels": True})
    module = builders.build(card)
    start_from_model(module, card, str(tmp_path / "small"))
    begun = LoadedModel(module.eval(), card, torch.device("cpu"))
    np.testing.assert_allclose(predict(crops(6), begun), predict(crops(6), small), atol=5e-3)  # float16 on disk


def test_what_is_no_crop_classifier_stays_as_it_is(dark_model: LoadedModel) -> None:
    assert with_lower_levels(dark_model) is dark_model


def test_a_network_without_such_maps_is_refused_by_name() -> None:
    card = replace(CARD, arguments={"backbone": "vit_tiny_patch16_224", "lower_levels": True})
    with pytest.raises(ValueError, match="VisionTransformer tells no maps of strides"):
        builders.build(card)
