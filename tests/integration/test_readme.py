"""What the README promises: its pandas code answers the questions it asks, and its commands and files exist."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from fixture_types import CommitSlide
from typer.testing import CliRunner
from upath import UPath

from wbc.cli import main as cli
from wbc.differential import differential_of
from wbc.storage import tables
from wbc.storage.tables import FailedField
from wbc.taxonomy import load_taxonomy, shipped_taxonomies

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
IN_LINE = re.findall(r"`([^`\n]+)`", PROSE)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit_slide: CommitSlide) -> dict[str, Any]:
    """What the README's Python leaves behind beside a counted `out` of four slides."""
    out, nan = UPath(tmp_path / "out"), float("nan")
    commit_slide(out, "calm", ["lymphocyte"] * 98 + ["eosinophil"] * 2 + ["rbc"] * 50, [0.9] * 100 + [nan] * 50)
    commit_slide(out, "allergic", ["lymphocyte"] * 80 + ["eosinophil"] * 20, [0.95] * 97 + [0.5, 0.41, 0.59])
    bad = tuple(FailedField(f"bad-{i}.jpg", "is empty") for i in range(2))
    commit_slide(out, "empty", [], failed=bad)
    commit_slide(out, "unclear", ["lymphocyte"] * 8 + ["unidentified"] * 2, [0.9] * 8 + [0.3, 0.2])
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, namespace)
    return namespace


def test_the_slides_to_look_at_are_found(answers: dict[str, Any]) -> None:
    assert set(answers["second_look"].index) == {"empty", "unclear"}


def test_eosinophils_come_with_their_limits(answers: dict[str, Any]) -> None:
    eosinophils: pd.DataFrame = answers["eosinophils"]
    # 20 of 100: Rümke's table says 12.7 to 29.2.
    assert eosinophils.loc["allergic"].round(1).tolist() == [20, 20.0, 12.7, 29.2]
    assert eosinophils.loc["empty", ["percent", "ci_low", "ci_high"]].isna().all()
    assert list(answers["raised"].index) == ["allergic"]


def test_unsure_cells_are_counted_and_found(answers: dict[str, Any]) -> None:
    assert answers["unsure_per_slide"].to_dict() == {"calm": 0, "allergic": 3, "empty": 0, "unclear": 2}
    assert answers["unsure"]["type_score"].max() < 0.6


def commands() -> list[list[str]]:
    """The words of every `wbc` command that the README shows, in a block or within a line."""
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines()]
    lines += IN_LINE
    return [line.split() for line in lines if line.startswith("wbc ")]


def test_every_command_and_option_exists() -> None:
    shown = commands()
    verbs = typer.main.get_command(cli.app).commands
    assert {words[1] for words in shown} == set(verbs)
    for words in shown:
        verb = words[1:3] if hasattr(verbs[words[1]], "commands") else words[1:2]
        told = CliRunner().invoke(cli.app, [*verb, "--help"])
        assert told.exit_code == 0, words
        for option in (word for word in words if word.startswith("--")):
            assert option in told.stdout, words


def test_every_option_of_the_table_exists() -> None:
    told = CliRunner().invoke(cli.app, ["count", "--help"]).stdout
    rows = "\n".join(line.split("|")[1] for line in README.splitlines() if line.startswith("| `--"))
    options = re.findall(r"`(--[a-z-]+)", rows)
    assert len(options) > 10
    assert [option for option in options if option not in told] == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"\bmake ([a-z-]+)\b", "\n".join([*blocks("sh"), *IN_LINE])))
    assert targets >= {"demo", "test", "test-fast", "setup", "check", "docs"}
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    named += re.findall(r"\b((?:deployments|configs|docs|wbc)/[\w./-]*)", README)
    assert len(named) > 6
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_shipped_taxonomies_columns_and_flags_are_named() -> None:
    for name in shipped_taxonomies():
        assert f"`{name}`" in README
    words = set(re.findall(r"[a-zA-Z0-9_]+", " ".join(IN_LINE)))
    for kind, schema in tables.SCHEMAS.items():
        assert [column for column in schema.names if column not in words] == [], kind
    flags = {
        *differential_of([], load_taxonomy("marrow_icsh"), 1).flags,
        *differential_of(["erythroblast"], load_taxonomy("blood")).flags,
    }
    assert [flag for flag in flags if flag not in words] == []


def test_set_up_says_what_it_needs(tmp_path: Path) -> None:
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    told = subprocess.run(["make", "setup", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert told.returncode != 0
    assert "Python 3.11 or newer is needed" in told.stderr
    assert not (tmp_path / ".venv").exists()
