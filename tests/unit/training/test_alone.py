"""One training a folder: another one is refused, and a dead one keeps nobody away."""

import subprocess
import sys
from pathlib import Path

import pytest

from wbc.training import checkpoint
from wbc.training.checkpoint import alone_in

HOLDS = """
import sys, time
from pathlib import Path
from wbc.training.checkpoint import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_training_is_refused_by_the_name_of_the_folder_until_the_first_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "model"
    with subprocess.Popen([sys.executable, "-c", HOLDS, folder], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "held\n"
            monkeypatch.setattr(checkpoint, "LAST_BREATH_SECONDS", 0.1)
            with pytest.raises(ValueError, match=r"runs/model: another training writes there"), alone_in(folder):
                pytest.fail("two at once")
            with alone_in(tmp_path / "runs" / "other"):
                pass
        finally:
            first.kill()
    monkeypatch.undo()
    with alone_in(folder), pytest.raises(ZeroDivisionError), alone_in(tmp_path / "third"):
        _ = 1 / 0
    with alone_in(tmp_path / "third"):
        pass
