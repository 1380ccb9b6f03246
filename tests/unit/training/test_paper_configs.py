"""The configs of the papers' systems can be read, built, and compared."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from wbc.configs import read_toml
from wbc.models import builders
from wbc.models.trainable import TrainableDetector
from wbc.training.classifier import ClassifierConfig
from wbc.training.detector import DetectorConfig

PAPERS = Path(__file__).parents[3] / "configs/papers"
CONFIGS = sorted(PAPERS.glob("wang2021_*.toml"))
CLASSIFIERS = sorted({*PAPERS.glob("asae2020*.toml"), *PAPERS.glob("varra2019*.toml"), *PAPERS.glob("b*.toml")})


def check_parts(module: nn.Module, frozen: Sequence[str]) -> None:
    """Raises AttributeError where the module lacks a part that is to be frozen."""
    for part in frozen:
        module.get_submodule(part.removesuffix("."))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_describes_a_detector_that_can_be_trained(config: Path) -> None:
    plan = read_toml(config, DetectorConfig)
    with torch.device("meta"):  # without the time of drawing weights
        model = builders.build(plan.card(config, 0.2))
    assert isinstance(model, TrainableDetector)
    check_parts(model.body, plan.frozen)


def test_the_systems_on_lite0_differ_in_the_model_alone() -> None:
    plans = [read_toml(config, DetectorConfig) for config in CONFIGS if "lite0" in config.stem]
    assert len(plans) == 5
    first, *others = (replace(plan, name="", builder="", model={}) for plan in plans)
    assert all(plan == first for plan in others)


@pytest.mark.parametrize("config", CLASSIFIERS, ids=lambda config: config.stem)
def test_a_config_describes_a_classifier_that_can_be_trained(config: Path) -> None:
    plan = read_toml(config, ClassifierConfig)
    # Two ask their first layers what the next ones get.
    with nullcontext() if plan.builder in ("nlnet", "varra") else torch.device("meta"):
        model = builders.build(plan.card(config))
    assert any(part.out_features == len(plan.classes) for part in model.modules() if isinstance(part, nn.Linear))
    check_parts(model, plan.frozen)


def test_what_asae_compares_with_differs_in_the_model_alone() -> None:
    plans = [read_toml(config, ClassifierConfig) for config in CLASSIFIERS if "asae2020_" in config.stem]
    first, *others = (replace(plan, name="", builder="", model={}) for plan in plans if plan.crop.input_px == 224)
    assert len(others) == 7
    assert all(plan == first for plan in others)
