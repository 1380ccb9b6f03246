"""Annotations on a real site: their event starts `retrain`, the gate decides, the next count is the new champion's."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from painted import make_slide
from registries import free_port, mlflow_server
from small_trainings import configs, pictures
from test_deployment import FLOW, SECONDS, Site, laboratory
from upath import UPath

from wbc.datasets.coco import write_coco
from wbc.datasets.labels import LabelledPicture
from wbc.models import versions
from wbc.training.orders import Order, fulfil, settle

pytestmark = [pytest.mark.dask, pytest.mark.timeout(900)]
CHAMPION = "models:/wbc-detector@champion"
BOTH, RED = '["rbc", "wbc"]', '["rbc"]'


def red_cells(folder: Path, n: int, seed: int) -> list[LabelledPicture]:
    """Painted pictures whose discs, which all look alike, are red cells."""
    return [replace(p, labels=("rbc",) * len(p.labels)) for p in pictures(folder, n, seed)]


def add_annotations(folder: Path, n: int, seed: int, environment: dict[str, str]) -> str:
    """`wbc annotations add` of some painted pictures, as a reviewer gives it."""
    labelled = red_cells(folder / f"tray-{seed}", n, seed)
    write_coco(folder / f"tray-{seed}" / "coco.json", labelled, folder / f"tray-{seed}")
    words = ["annotations", "add", str(folder / f"tray-{seed}" / "coco.json"), "--store", str(folder / "store")]
    command = [sys.executable, "-c", "from wbc.cli.main import app; app()", *words, "--due", "16", "--um-per-px", "0.2"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "no training was told" not in ran.stderr
    return ran.stdout


def count(site: Site, folder: Path) -> str:
    """The detector that a slide was counted by, once the deployment has counted it anew."""
    asked = {"slides": str(folder / "slides"), "out": str(folder / "out"), "detector": CHAMPION, "classifier": None}
    given = (word for name, value in asked.items() for word in ("--param", f"{name}={json.dumps(value)}"))
    site.call("deployment", "run", FLOW, *given, "--param", "workers=1", "--watch", "--watch-timeout", str(SECONDS))
    detector: str = pd.read_parquet(folder / "out" / "slides")["detector"].item()
    return detector


def red_alone(config: str) -> str:
    """The config of a detector of red cells, which is not watched."""
    return config[: config.index("[[watch]]")].replace(BOTH, RED)


def prepared(site: Site, folder: Path) -> None:
    """A champion that has learnt next to nothing, and a `retrain` deployment of tiny models."""
    add_annotations(folder, 1, 1, site.environment)
    poor, _ = configs(folder, steps=1)
    poor.write_text(red_alone(poor.read_text()))
    trained = fulfil(settle(Order("detector", poor, folder, folder / "runs", device="cpu")))
    versions.promote(f"models:/wbc-detector/{versions.register(trained.folder, 'wbc-detector')}")
    frozen = folder / "frozen"
    write_coco(frozen / "coco.json", red_cells(frozen, 8, seed=9), frozen)
    block = '[[measure]]\nset = "painted"\nformat = "coco"\nimages = "frozen"\nannotations = "frozen/coco.json"\n'
    (folder / "frozen.toml").write_text(f"{block}um_per_px = 0.2\n")
    detector, _ = configs(folder, steps=40, start=CHAMPION)
    text = red_alone(detector.read_text()).replace("batch = 1", "batch = 4\nrate = 2e-3")
    detector.write_text(text.replace("checkpoint_every = 2", "checkpoint_every = 20"))
    found = site.ask("deployments/name/retrain/retrain")
    own = {"data": str(folder), "runs": str(folder / "runs"), "frozen": str(folder / "frozen.toml"), "device": "cpu"}
    changed = found["parameters"] | own | {"detector": str(detector), "classifier": None}
    site.wait_for(lambda: site.change(f"deployments/{found['id']}", {"parameters": changed}))


def test_annotations_become_the_champion_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    make_slide(UPath(tmp_path / "slides" / "one"), 2)
    with mlflow_server(tmp_path, port), laboratory(tmp_path) as site:
        prepared(site, tmp_path)
        assert "wbc-detector/1" in count(site, tmp_path)
        assert "20 annotations wait" in add_annotations(tmp_path, 4, 2, site.environment)

        def ended() -> Any:
            runs = site.ask("flow_runs/filter", {"flows": {"name": {"any_": ["retrain"]}}})
            over = [run for run in runs if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")]
            return over[0] if over else None

        run = site.wait_for(ended)
        assert run["state"]["type"] == "COMPLETED", run["state"]
        assert run["created_by"]["type"] == "AUTOMATION"
        version = versions.version_of("models:/wbc-detector/2")
        decision = versions.decision_of(version)
        assert decision["promoted"], decision
        assert version.aliases == ("champion",)
        assert "wbc-detector/2" in count(site, tmp_path)
