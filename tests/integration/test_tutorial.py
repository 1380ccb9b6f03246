"""The tutorial's code runs, block after block, on a counted OUT, and answers what it asks."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fixture_types import CommitSlide
from PIL import Image
from upath import UPath

from wbc.storage.tables import FailedField

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit_slide: CommitSlide) -> dict[str, Any]:
    """What the tutorial's code leaves behind beside four counted slides, one of which failed in part."""
    out, nan = UPath(tmp_path / "out"), float("nan")
    commit_slide(out, "calm", ["lymphocyte"] * 98 + ["eosinophil"] * 2 + ["rbc"] * 50, [0.9] * 100 + [nan] * 50)
    commit_slide(out, "allergic", ["lymphocyte"] * 80 + ["eosinophil"] * 20, [0.95] * 97 + [0.5, 0.41, 0.59])
    commit_slide(out, "unclear", ["lymphocyte"] * 8 + ["unidentified"] * 2, [0.9] * 8 + [0.3, 0.2])
    commit_slide(out, "empty", [], failed=(FailedField("bad.jpg", "is empty"),))
    for slide_id in ("calm", "allergic", "unclear"):
        (tmp_path / "slides" / slide_id).mkdir(parents=True)
        Image.new("RGB", (640, 480), "pink").save(tmp_path / "slides" / slide_id / "field-001.jpg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE):
        exec(block, namespace)
    return namespace


def test_the_tutorial_answers_its_questions(answers: dict[str, Any], tmp_path: Path) -> None:
    assert set(answers["flags"][answers["flags"] == "unidentified_over_10_percent"].index) == {"unclear"}
    assert answers["failed"].to_dict("records") == [{"field": "bad.jpg", "reason": "is empty"}]
    assert answers["percent"].loc["allergic", "eosinophil"] == 20
    assert "rbc" not in answers["percent"]
    assert answers["sureness"].loc["eosinophil", "count"] == 22
    assert answers["off_scale"].empty
    assert answers["maybe"].groupby("slide_id").size().to_dict() == {"allergic": 20, "calm": 2, "unclear": 2}

    least_sure: pd.DataFrame = answers["least_sure"]
    assert least_sure["type_score"].is_monotonic_increasing
    assert least_sure.iloc[0][["slide_id", "cell_type"]].tolist() == ["unclear", "unidentified"]
    with Image.open(tmp_path / "least-sure.png") as sheet:
        assert sheet.size == (600, 480)
        assert sheet.getpixel((60, 60)) != (255, 255, 255)


def test_sql_and_pandas_agree(answers: dict[str, Any], tmp_path: Path) -> None:
    by_sql: pd.DataFrame = answers["cells_of_slide"].df().set_index("slide_id")
    assert by_sql["cells"].to_dict() == {"calm": 150, "allergic": 100, "unclear": 10}
    assert by_sql.loc["calm", "white_cells"] == 100
    assert answers["raised"]["slide_id"].tolist() == ["allergic"]
    assert set(pd.read_csv(tmp_path / "to-look-at.csv")["slide_id"]) == {"calm", "allergic", "unclear", "empty"}
