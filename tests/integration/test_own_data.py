"""The page about own data tells commands that run, from a VIA export to a counted slide."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from painted import make_slide
from small_trainings import pictures
from upath import UPath

from wbc.datasets.labels import LabelledPicture
from wbc.datasets.via import write_via

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
NAMES = {"rbc": "red cell", "lymphocyte": "white cell", "monocyte": "white cell"}


@pytest.mark.dask
@pytest.mark.timeout(600)
def test_twenty_lines_lead_from_a_via_export_to_a_counted_slide(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "pictures"
    own = [LabelledPicture(p.path, p.boxes, tuple(NAMES[n] for n in p.labels)) for p in pictures(folder, 3)]
    write_via(tmp_path / "mine" / "via.json", own, folder)
    make_slide(UPath(tmp_path / "mine" / "slides" / "one"), 1)
    (block,) = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(block.splitlines()) <= 20
    small = "steps = 1\ndata_workers = 0"
    tables = "[mosaic]\nsize_px = 128\n[calibrate]\npictures = 1\n[[data]]"
    block = block.replace("steps = 400", small).replace("[[data]]", tables)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "wbc").write_text(
        f'#!{sys.executable}\nfrom wbc.cli.main import app\nif __name__ == "__main__":\n    app()\n'
    )
    (tmp_path / "bin" / "wbc").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "WBC_WORKERS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(PAGE.parents[1]), os.environ.get("PYTHONPATH", "")])
    shell = shutil.which("bash") or "sh"
    ran = subprocess.run([shell, "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert pd.read_parquet(tmp_path / "out" / "slides")["n_fields"].tolist() == [1]
