"""A count's parameters: one list, from which flow, command line and deployment take theirs."""

import inspect
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from wbc.configs import checked
from wbc.counting.parameters import CountParameters, explanations
from wbc.types import UM_PER_PX_RANGE

DEPLOYMENT = Path(__file__).parents[3] / "deployments" / "prefect.yaml"
WHERE = {"slides": "in", "out": "out"}


def parameters(**changes: object) -> CountParameters:
    return checked(WHERE | changes, CountParameters, "here")


@pytest.mark.parametrize(("given", "drawn"), [(True, "white"), (False, "none"), ("all", "all"), ("white", "white")])
def test_annotate_may_be_true_as_in_old_deployments(given: object, drawn: str) -> None:
    assert parameters(annotate=given).annotate == drawn


def test_no_classifier_may_be_written_as_none() -> None:
    assert parameters(classifier="none").classifier is None
    assert parameters(classifier=None).classifier is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("min_score", 1.5, "min_score is 1.5: input should be less than or equal to 1"),
        ("min_score", "0.5", "min_score is '0.5', not a number"),
        ("um_per_px", 0, "um_per_px is 0: input should be greater than or equal to 0.02"),
        ("um_per_px", float("nan"), "um_per_px is nan: input should be a finite number"),
        ("workers", 0, "workers is 0: input should be greater than or equal to 1"),
        ("device", "tpu", "device: 'tpu' is not auto, cpu, cuda or cuda:NUMBER"),
        ("annotate", "red", "annotate is 'red', none of 'none', 'white', 'all'"),
        ("out", "", "out is ''"),
    ],
)
def test_what_no_count_can_do_is_told_in_a_sentence(name: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=r"^here: ") as raised:
        parameters(**{name: value})
    assert expected in str(raised.value)


def test_every_parameter_explains_itself() -> None:
    assert list(explanations()) == [f.name for f in fields(CountParameters)]
    assert all(text.endswith(".") for text in explanations().values())


def test_the_flow_has_these_parameters_by_position_or_by_name() -> None:
    from flows.count_slides import count_slides

    assert inspect.signature(count_slides.fn) == inspect.signature(CountParameters)
    described = count_slides.parameters.properties
    assert {name: about["description"] for name, about in described.items()} == explanations()
    assert count_slides.parameters.required == ["slides", "out"]
    assert (described["min_score"]["minimum"], described["min_score"]["maximum"]) == (0, 1)
    assert {"type": "boolean"} in described["annotate"]["anyOf"]


def test_the_deployment_names_every_parameter_with_its_default() -> None:
    deployments = yaml.safe_load(DEPLOYMENT.read_text())["deployments"]
    (deployment,) = (deployment for deployment in deployments if deployment["name"] == "count-slides")
    named: dict[str, Any] = deployment["parameters"]
    assert list(named) == [f.name for f in fields(CountParameters)]
    defaults = {f.name: f.default for f in fields(CountParameters) if f.default is not MISSING}
    assert {name: named[name] for name in defaults} == defaults
    assert asdict(checked(named, CountParameters, "prefect.yaml")) == named


def test_scales_have_the_limits_that_slides_have() -> None:
    low, high = UM_PER_PX_RANGE
    assert (parameters(um_per_px=low).um_per_px, parameters(um_per_px=high).um_per_px) == (low, high)
    for beyond in (0.99 * low, 1.01 * high):
        with pytest.raises(ValueError, match="um_per_px is"):
            parameters(um_per_px=beyond)
