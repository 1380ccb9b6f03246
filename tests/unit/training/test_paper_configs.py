"""The configs of the papers' systems can be read, built, and compared."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wbc.configs import read_toml
from wbc.models import builders
from wbc.models.trainable import TrainableDetector
from wbc.training.detector import DetectorConfig

CONFIGS = sorted((Path(__file__).parents[3] / "configs/papers").glob("wang2021_*.toml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_config_describes_a_detector_that_can_be_trained(config: Path) -> None:
    plan = read_toml(config, DetectorConfig)
    with torch.device("meta"):  # without the time of drawing weights
        assert isinstance(builders.build(plan.card(config, 0.2)), TrainableDetector)


def test_the_systems_on_lite0_differ_in_the_model_alone() -> None:
    plans = [read_toml(config, DetectorConfig) for config in CONFIGS if "lite0" in config.stem]
    assert len(plans) == 5
    first, *others = (replace(plan, name="", builder="", model={}) for plan in plans)
    assert all(plan == first for plan in others)
