"""`wbc count` refuses what cannot be, before it loads what counting needs."""

import os
from pathlib import Path

from painted import make_slide
from typer.testing import CliRunner
from upath import UPath

from wbc.cli.main import app
from wbc.storage.lock import holding


def test_an_out_that_another_run_writes_to_is_refused_with_its_name(tmp_path: Path) -> None:
    make_slide(UPath(tmp_path / "slides" / "s1"), 1)
    with holding(UPath(tmp_path / "out"), "night-7"):
        refused = CliRunner().invoke(app, ["count", str(tmp_path / "slides"), "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert "is written by" in refused.stderr
    assert f"run night-7 (process {os.getpid()} on " in refused.stderr
