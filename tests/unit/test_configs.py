"""Settings from files: strict types, nested dataclasses, and mistakes named by file, key and value."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from wbc.configs import checked, parse_toml, read_toml


@dataclass(frozen=True, slots=True)
class Loop:
    steps: int
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{self.steps} steps are none")


@dataclass(frozen=True, slots=True)
class Source:
    name: str = ""
    weight: float | None = None


@dataclass(frozen=True, slots=True)
class Table:
    format: Literal["table"]
    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"{self.rows} rows are none")


@dataclass(frozen=True, slots=True)
class Folder:
    format: Literal["voc", "yolo"]
    images: str


@dataclass(frozen=True, slots=True)
class Plan:
    task: Literal["detector", "classifier"]
    loop: Loop
    classes: tuple[str, ...] = ()
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    sources: tuple[Source, ...] = ()
    data: tuple[Annotated[Table | Folder, Field(discriminator="format")], ...] = ()
    extra: Loop | None = None
    verify: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


GOOD: dict[str, Any] = {"task": "detector", "loop": {"steps": 3}}


def test_a_file_becomes_frozen_settings_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("""
task = "classifier"
classes = ["a", "b"]
mean = [0, 1, 0.5]
sources = [{ name = "x", weight = 2 }, {}]
extra = { steps = 1 }
arguments = { sizes = [[1, 2], [3]], deep = { yes = true } }
loop = { steps = 5, rate = 1e-3 }
""")
    arguments = {"sizes": [[1, 2], [3]], "deep": {"yes": True}}
    sources = (Source("x", 2.0), Source())
    assert read_toml(path, Plan) == Plan(
        "classifier", Loop(5, 1e-3), ("a", "b"), (0.0, 1.0, 0.5), sources, extra=Loop(1), arguments=arguments
    )
    assert isinstance(read_toml(str(path), Plan).mean[0], float)


def test_one_of_several_tables_is_chosen_by_its_format() -> None:
    data = [{"format": "table", "rows": 2}, {"format": "yolo", "images": "a"}]
    assert checked(GOOD | {"data": data}, Plan, "x").data == (Table("table", 2), Folder("yolo", "a"))


def test_values_that_are_read_already_need_no_file() -> None:
    assert checked(GOOD, Plan, "a card") == Plan("detector", Loop(3))
    assert math.isnan(checked(GOOD | {"metrics": {"AP": math.nan}}, Plan, "a card").metrics["AP"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loop": {"steps": "many"}}, "loop.steps is 'many', not an integer"),
        ({"loop": {"steps": 2.0}}, "loop.steps is 2.0, not an integer"),
        ({"loop": {"steps": True}}, "loop.steps is True, not an integer"),
        ({"loop": {"steps": 2, "rate": True}}, "loop.rate is True, not a number"),
        ({"loop": {"steps": 2, "rate": "0.1"}}, "loop.rate is '0.1', not a number"),
        ({"loop": {}}, "loop.steps is missing"),
        ({"loop": {"steps": 0}}, "loop: 0 steps are none"),
        ({"loop": {"steps": 1, "stepz": 1}}, "loop.stepz is unknown; the keys are steps, rate"),
        ({"loop": 7}, "loop is 7, not a table"),
        ({"extra": {"stepz": 1, "steps": 1}}, "extra.stepz is unknown; the keys are steps, rate"),
        ({"task": "painter"}, "task is 'painter', none of 'detector', 'classifier'"),
        ({"classes": "rbc"}, "classes is 'rbc', not a list"),
        ({"classes": ["rbc", 3]}, "classes[2] is 3, not text"),
        ({"mean": [0.5, 0.5]}, "mean[3] is missing"),
        ({"verify": 1}, "verify is 1, not true or false"),
        ({"sources": [{}, {"weight": "x"}]}, "sources[2].weight is 'x', not a number"),
        ({"sources": [{"name": "bccd", "weight": "x"}]}, "sources[bccd].weight is 'x', not a number"),
        ({"sources": [{"name": "bccd", "heavy": 1}]}, "sources[bccd].heavy is unknown; the keys are name, weight"),
        ({"data": [{"format": "coco"}]}, "data[1].format is 'coco', none of 'table', 'voc', 'yolo'"),
        ({"data": [{"rows": 1}]}, "data[1].format is missing"),
        ({"data": [{"format": "table"}]}, "data[1].rows is missing"),
        ({"data": [{"format": "table", "rows": "x"}]}, "data[1].rows is 'x', not an integer"),
        ({"data": [{"format": "table", "rows": 0}]}, "data[1]: 0 rows are none"),
        (
            {"data": [{"format": "yolo", "images": "a", "rows": 1}]},
            "data[1].rows is unknown; the keys are format, images",
        ),
        ({"arguments": [1]}, "arguments is [1], not a table"),
        ({"metrics": {"AP": "x"}}, "metrics.AP is 'x', not a number"),
    ],
)
def test_a_mistake_is_named_by_file_key_and_value(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^plan\.toml: ") as caught:
        checked(GOOD | change, Plan, "plan.toml")
    assert str(caught.value) == f"plan.toml: {sentence}"


def test_all_mistakes_of_a_file_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"^x: loop\.steps is missing; colour is unknown; the keys are task, loop, "):
        checked({"task": "detector", "loop": {}, "colour": 1}, Plan, "x")


@pytest.mark.parametrize("value", [7, None, [], "text"])
def test_what_is_no_table_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^x: this is .*, not a table$"):
        checked(value, Plan, "x")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"task = 'detector'\nloop = 1 2", "line 2"),
        (b"\xff\xfe", "decode"),
        (b"task = 2026-01-02", "2026-01-02 is a date, and no setting takes one"),
    ],
)
def test_what_is_no_toml_is_named(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^plan\.toml: .*{reason}"):
        parse_toml(content, Plan, "plan.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.toml: no such file$"):
        read_toml(tmp_path / "nothing.toml", Plan)
    with pytest.raises(ValueError, match="cannot be read"):
        read_toml(tmp_path, Plan)
