"""Where a count's parameters come from: option before variable before file before default."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from wbc.cli.sources import Setting, parameters, settings
from wbc.counting.parameters import CountParameters


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file that names four parameters."""
    path = tmp_path / "count.toml"
    path.write_text('slides = "from file"\nmin_score = 0.1\ntaxonomy = "wang2021"\nclassifier = "none"\n')
    return str(path)


def test_without_any_source_the_defaults_hold() -> None:
    defaults = {f.name: Setting(f.default, "default") for f in fields(CountParameters) if f.default is not MISSING}
    assert settings({}, {}, None) == defaults


def test_an_option_comes_before_a_variable_before_a_file_before_the_default(file: str) -> None:
    variables = {"WBC_MIN_SCORE": "0.2", "WBC_OUT": "from variable", "WBC_UNRELATED": "x", "PATH": "/bin"}
    given = settings({"min_score": 0.3}, variables, file)
    assert given["min_score"] == Setting(0.3, "--min-score")
    assert given["out"] == Setting("from variable", "WBC_OUT")
    assert given["slides"] == Setting("from file", file)
    assert given["classifier"] == Setting(None, file)
    assert given["detector"] == Setting("bundled:detector", "default")
    assert settings({}, variables, file)["min_score"] == Setting(0.2, "WBC_MIN_SCORE")
    asked = parameters(given)
    assert (asked.slides, asked.out, asked.min_score, asked.taxonomy) == ("from file", "from variable", 0.3, "wang2021")


def test_an_option_that_says_the_default_still_comes_first(file: str) -> None:
    given = settings({"force": False, "min_score": 0.7}, {"WBC_FORCE": "yes"}, file)
    assert (given["force"], given["min_score"]) == (Setting(False, "--force"), Setting(0.7, "--min-score"))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("FORCE", "1", True),
        ("FORCE", "off", False),
        ("WORKERS", "1", 1),
        ("UM_PER_PX", "0.25", 0.25),
        ("OUT", "1", "1"),
        ("DETECTOR", "true", "true"),
        ("CLASSIFIER", "none", None),
        ("ANNOTATE", "Yes", "white"),
        ("ANNOTATE", "all", "all"),
    ],
)
def test_a_variables_text_becomes_the_parameters_type(name: str, text: str, value: Any) -> None:
    assert settings({}, {f"WBC_{name}": text}, None)[name.lower()] == Setting(value, f"WBC_{name}")


def test_an_empty_variable_counts_as_none(file: str) -> None:
    assert settings({}, {"WBC_MIN_SCORE": ""}, file)["min_score"] == Setting(0.1, file)


@pytest.mark.parametrize(
    ("options", "variables", "content", "expected"),
    [
        ({"workers": 0}, {}, "", "--workers: workers is 0: input should be greater"),
        ({}, {"WBC_MIN_SCORE": "many"}, "", "WBC_MIN_SCORE: min_score is 'many', not a number"),
        ({}, {"WBC_FORCE": "perhaps"}, "", "WBC_FORCE: force is 'perhaps', not true or false"),
        ({}, {}, 'min_score = "0.5"', "count.toml: min_score is '0.5', not a number"),
        ({}, {}, "min_scor = 0.5", "count.toml: min_scor is unknown; the keys are slides, out, detector"),
        ({}, {}, "min_score 0.5", "count.toml: "),
    ],
)
def test_a_mistake_is_named_with_its_source(
    tmp_path: Path, options: dict[str, Any], variables: dict[str, str], content: str, expected: str
) -> None:
    path = tmp_path / "count.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r".") as raised:
        settings(options, variables, str(path))
    assert expected in str(raised.value)


def test_a_mistake_in_a_source_is_told_even_where_another_comes_first() -> None:
    with pytest.raises(ValueError, match="WBC_WORKERS"):
        settings({"workers": 2}, {"WBC_WORKERS": "two"}, None)


@pytest.mark.parametrize("name", ["slides", "out"])
def test_a_count_needs_slides_and_out(name: str) -> None:
    given = settings({"slides": "a", "out": "b"}, {}, None)
    del given[name]
    with pytest.raises(ValueError, match=f"{name} is missing: .*WBC_{name.upper()}"):
        parameters(given)
