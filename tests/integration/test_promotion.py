"""A challenger before the gate with a real MLflow: what is decided stays on the version, and the better one counts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixture_types import Wbc
from jobs import DARK_CARD
from PIL import Image

from wbc.datasets.coco import write_coco
from wbc.datasets.labels import LabelledPicture
from wbc.evaluation import promotion
from wbc.evaluation.frozen import Frozen, FrozenSet
from wbc.models import builders, registry, versions
from wbc.models.cards import ModelError
from wbc.models.versions import CHALLENGER, CHAMPION
from wbc.taxonomy import load_taxonomy

NAME = "wbc-detector"


def registered(folder: Path, level: float) -> str:
    """A version of a detector that sees what is darker than `level`."""
    card = replace(DARK_CARD, arguments={"level": level, "smallest_px": 12})
    registry.save(folder, builders.build(card), card)
    return f"models:/{NAME}/{versions.register(folder, NAME)}"


@pytest.fixture
def frozen(tmp_path: Path) -> Frozen:
    """Fields with dark and lighter discs."""
    pictures = []
    for i in range(5):
        field, boxes = np.full((100, 300, 3), 230, np.uint8), []
        for j in range(4):
            x = 20 + 60 * j + i
            field[30:60, x : x + 30] = (60, 120)[j % 2]
            boxes.append((x, 30, x + 30, 60))
        Image.fromarray(field).save(tmp_path / f"{i}.png")
        picture = LabelledPicture(tmp_path / f"{i}.png", np.array(boxes, np.float32), ("rbc",) * 4)
        pictures.append((picture, 0.2))
    return Frozen((FrozenSet("scanner", tuple(pictures)),), load_taxonomy("blood"))


def test_the_better_version_becomes_champion_and_keeps_both_columns(
    mlflow_file: str, tmp_path: Path, frozen: Frozen
) -> None:
    blind, seeing = registered(tmp_path / "blind", 0.35), registered(tmp_path / "seeing", 0.6)
    versions.promote(blind)
    decision = promotion.decide(seeing, frozen, "cpu")
    assert decision.promoted
    champion = versions.version_of(f"models:/{NAME}@{CHAMPION}")
    assert (champion.reference, champion.aliases) == (seeing, (CHAMPION,))
    told = versions.decision_of(champion)
    assert told["champion"].startswith(f"{blind}@")
    assert told["champion_main"] < told["challenger_main"]
    assert champion.metrics["gate AP50 scanner"] == decision.challenger_main["scanner"]
    (kept,) = (tmp_path / "mlartifacts").rglob("decision.json")
    assert json.loads(kept.read_text())["kinds"][0]["champion"] == 50.0

    worse = promotion.decide(blind, frozen, "cpu")
    assert not worse.promoted
    assert versions.version_of(blind).aliases == (CHALLENGER,)
    assert versions.decision_of(versions.version_of(blind))["fell"] == ["rbc of scanner"]
    assert versions.rollback(NAME).reference == blind


def test_a_champion_that_came_meanwhile_is_not_pushed_aside(
    mlflow_file: str, tmp_path: Path, frozen: Frozen, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind, seeing, other = (registered(tmp_path / f"m{i}", level) for i, level in enumerate((0.35, 0.6, 0.7)))
    versions.promote(blind)
    keep = promotion.keep_decision

    def keep_and_be_overtaken(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        versions.promote(other)

    monkeypatch.setattr(promotion, "keep_decision", keep_and_be_overtaken)
    with pytest.raises(ModelError, match=f"but {other} is the champion now"):
        promotion.decide(seeing, frozen, "cpu")
    assert versions.champion_or_bundled("detector") == other


def test_the_verbs_list_show_promote_and_go_back(mlflow_file: str, tmp_path: Path, wbc: Wbc, frozen: Frozen) -> None:
    blind, seeing = registered(tmp_path / "blind", 0.35), registered(tmp_path / "seeing", 0.6)
    pictures = [picture for picture, _ in frozen.sets[0].pictures]
    (tmp_path / "frozen").mkdir()
    for picture in pictures:
        picture.path.rename(tmp_path / "frozen" / picture.path.name)
    moved = [replace(picture, path=tmp_path / "frozen" / picture.path.name) for picture in pictures]
    write_coco(tmp_path / "frozen" / "truth.json", moved, tmp_path / "frozen")
    plan = tmp_path / "frozen.toml"
    block = {"set": "scanner", "format": "coco", "images": "frozen", "annotations": "frozen/truth.json"}
    lines = [f'{key} = "{value}"' for key, value in block.items()]
    plan.write_text("\n".join(["[[data]]", *lines, "um_per_px = 0.2", ""]))
    judged = ("--frozen", plan, "--data", tmp_path, "--device", "cpu")

    assert wbc("models", "promote", blind, "--force").output == f"{blind} is the champion now, unjudged\n"
    compared = wbc("models", "compare", blind, seeing, *judged)
    assert f"{seeing} would be promoted" in compared.output
    promoted = wbc("models", "promote", seeing, *judged)
    assert f"{seeing} is the champion now, beside {blind}" in promoted.output
    refused = wbc("models", "promote", blind, *judged)
    assert (refused.exit_code, "is not promoted" in refused.output) == (1, True)
    listed = json.loads(wbc("models", "list", NAME, "--json").output)
    assert [facts["decision"] for facts in listed.values()] == ["promoted", "not promoted"]
    shown = json.loads(wbc("models", "show", f"models:/{NAME}@champion", "--json").output)
    assert (shown["reference"], shown["gate"]["promoted"]) == (seeing, True)
    assert wbc("models", "rollback", NAME).output == f"{blind} is the champion now\n"
    assert wbc("models", "export", seeing, tmp_path / "exported").exit_code == 0
    assert wbc("models", "import", tmp_path / "exported").output == f"{seeing}\n"
    assert wbc("models", "promote", seeing).exit_code == 2
