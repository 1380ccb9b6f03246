"""`wbc synth` renders what a config says, and says what is wrong with one."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from wbc.cli.main import app

CONFIG = """
height_px = 300
width_px = 400
um_per_px = 0.2
white_cells_per_field = [3, 3]
platelets_per_field = [0, 0]
red_cells_per_mm2 = [0, 0]
proportions = [["eosinophil", 1]]
"""


def synth(folder: Path, config: str) -> Result:
    (folder / "smear.toml").write_text(config)
    return CliRunner().invoke(
        app, ["synth", str(folder / "out"), "--slides", "1", "--fields", "1", "--config", str(folder / "smear.toml")]
    )


def test_a_config_says_what_a_field_holds(tmp_path: Path) -> None:
    assert synth(tmp_path, CONFIG).exit_code == 0
    truth = json.loads((tmp_path / "out" / "truth_coco.json").read_text())
    names = {c["id"]: c["name"] for c in truth["categories"]}
    assert [names[a["category_id"]] for a in truth["annotations"]] == ["eosinophil"] * 3
    with Image.open(tmp_path / "out" / truth["images"][0]["file_name"]) as picture:
        assert picture.size == (400, 300)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("height_px = 300", "height_px = 1.5", "smear.toml: height_px is 1.5, not an integer"),
        ('"eosinophil"', '"dragon"', "smear.toml: kinds ['dragon'] are none of"),
        ("width_px", "breadth_px", "smear.toml: breadth_px is unknown; the keys are height_px"),
        ("[3, 3]", "[5, 3]", "smear.toml: no range of counts: 5 to 3"),
    ],
)
def test_what_is_wrong_with_a_config_is_one_line_and_nothing_is_rendered(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    result = synth(tmp_path, CONFIG.replace(old, new))
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
