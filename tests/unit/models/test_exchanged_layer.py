"""A classifier's last layer can be taken off and exchanged, and nothing else of it changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wbc.cells.classify import features, predict
from wbc.models import builders, registry
from wbc.models.cards import ModelCard, ModelRef, Teaching
from wbc.models.last_layer import last_layer, with_last_layer
from wbc.models.registry import LoadedModel, ModelError

HALF = (0.5, 0.5, 0.5)
CARD = ModelCard(
    *("small", "1", "classifier", "crop_classifier", {"backbone": "test_efficientnet"}, ("a", "b", "c")),
    *(0.2, 32, HALF, HALF, ""),
)


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    torch.manual_seed(0)
    return LoadedModel(builders.build(CARD), CARD, torch.device("cpu"))


def crops(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)


def test_features_and_last_layer_are_what_predict_says(small: LoadedModel) -> None:
    found = features(crops(70), small)
    assert found.shape == (70, 2, last_layer(small).in_features)
    with torch.inference_mode():
        chances = last_layer(small)(torch.from_numpy(found)).softmax(2).mean(1).numpy()
    np.testing.assert_allclose(chances, predict(crops(70), small), atol=1e-5)
    assert features(crops(0), small).shape == (0, 2, last_layer(small).in_features)


def test_a_new_last_layer_changes_nothing_else(small: LoadedModel) -> None:
    before = {name: tensor.clone() for name, tensor in small.module.state_dict().items()}
    shape = tuple(last_layer(small).weight.shape)
    other = with_last_layer(small, np.zeros(shape), np.array([0.0, 5.0, 0.0]))
    changed = [name for name, tensor in other.state_dict().items() if not torch.equal(tensor, before[name])]
    assert sorted(changed) == ["classifier.bias", "classifier.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.module.state_dict().items())
    assert (predict(crops(3), replace(small, module=other)).argmax(1) == 1).all()
    with pytest.raises(ValueError, match=r"weight \(2, 2\)"):
        with_last_layer(small, np.zeros((2, 2)), np.zeros(2))


def test_a_model_without_a_last_layer_is_refused(dark_model: LoadedModel) -> None:
    with pytest.raises(ModelError, match="'dark_regions' does not tell features from a last layer"):
        last_layer(dark_model)


def test_who_taught_a_model_is_on_its_card_and_changes_no_count(small: LoadedModel, tmp_path: Path) -> None:
    plain = registry.save(tmp_path / "plain", small.module, CARD)
    taught = replace(
        CARD,
        parents=(ModelRef(str(tmp_path / "plain"), plain.digest),),
        taught=Teaching("Ada", "/out", 12, {"a": 12}, "kept"),
    )
    registry.save(tmp_path / "taught", small.module, taught)
    read = registry.read_card(str(tmp_path / "taught"))
    assert (read.parents, read.taught) == (taught.parents, taught.taught)
    assert read.digest == plain.digest
