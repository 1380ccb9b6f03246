"""`wbc show` prints every count that can be read, and names those that cannot."""

import json
from pathlib import Path

import pytest
from fixture_types import CommitSlide
from typer.testing import CliRunner
from upath import UPath

from wbc.cli.main import app
from wbc.storage import counts
from wbc.storage.layout import Layout, TableName


@pytest.fixture
def out(tmp_path: Path, commit_slide: CommitSlide) -> UPath:
    """Three counted slides."""
    out = UPath(tmp_path / "out")
    for slide_id in ("a", "b", "c"):
        commit_slide(out, slide_id, ["rbc", "lymphocyte"])
    return out


@pytest.mark.parametrize("table", ["cells", "differentials", "slides"])
def test_a_broken_slide_is_named_and_costs_the_others_nothing(
    out: UPath, table: TableName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "PATIENCE_SECONDS", 0.0)
    path = Layout(out).table(table, "b")
    path.write_bytes(path.read_bytes()[:-100])
    shown = CliRunner().invoke(app, ["show", str(out), "--json"])
    assert [slide["slide_id"] for slide in json.loads(shown.stdout)["slides"]] == ["a", "c"]
    assert shown.exit_code == 3
    (line,) = shown.stderr.splitlines()
    assert line.startswith("b: ")
    assert f"{table}/b.parquet" in line
    assert "counts it again" in line


def test_counts_that_can_be_read_are_all_shown(out: UPath) -> None:
    shown = CliRunner().invoke(app, ["show", str(out)])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert [line.split()[0] for line in shown.stdout.splitlines() if "in the differential" in line] == ["a", "b", "c"]
