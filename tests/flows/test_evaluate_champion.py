"""The monthly look at the champion: quiet while it does what it did, an event and a failed run when it does not."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import DARK_CARD
from PIL import Image
from prefect_servers import asked

from flows.evaluate_champion import ChampionDrifted, evaluate_champion
from wbc.datasets.coco import write_coco
from wbc.datasets.labels import LabelledPicture
from wbc.models import builders, registry, versions

NAME = "wbc-detector"


def frozen_slides(folder: Path, shade: int) -> Path:
    """Fields of eight discs of a shade, and the TOML file that names them."""
    pictures = []
    (folder / "fields").mkdir(exist_ok=True)
    for i in range(4):
        field, boxes = np.full((100, 520, 3), 230, np.uint8), []
        for x in range(20, 500, 60):
            field[30:60, x + i : x + i + 30] = shade
            boxes.append((x + i, 30, x + i + 30, 60))
        Image.fromarray(field).save(folder / "fields" / f"{i}.png")
        path = folder / "fields" / f"{i}.png"
        pictures.append(LabelledPicture(path, np.array(boxes, np.float32), ("rbc",) * len(boxes)))
    write_coco(folder / "truth.json", pictures, folder / "fields")
    lines = ["[[data]]", 'set = "scanner"', 'format = "coco"', 'images = "fields"', 'annotations = "truth.json"']
    (folder / "frozen.toml").write_text("\n".join([*lines, "um_per_px = 0.2", ""]))
    return folder / "frozen.toml"


def events(server: str) -> list[dict[str, Any]]:
    named = {"filter": {"event": {"name": ["wbc.champion.drifted"]}}}
    found: list[dict[str, Any]] = asked(f"{server}/events/filter", named)["events"]
    return found


def test_a_champion_that_drifts_fails_the_run_and_is_told(
    prefect_server: str, mlflow_file: str, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"frozen": str(frozen_slides(tmp_path, 60)), "data": str(tmp_path), "device": "cpu"}
    assert evaluate_champion(**asked) == []  # no version is champion yet
    registry.save(tmp_path / "m", builders.build(DARK_CARD), replace(DARK_CARD))
    reference = f"models:/{NAME}/{versions.register(tmp_path / 'm', NAME)}"
    versions.promote(reference)
    (first,) = evaluate_champion(**asked)
    assert first.is_first
    (again,) = evaluate_champion(**asked)
    assert again.rows
    assert (again.same_slides, again.drifted) == (True, ())
    frozen_slides(tmp_path, 160)  # what the scanner makes now is too light for it
    with pytest.raises(ChampionDrifted, match=f"{reference}: gate AP50 all sets fell from 1.0000 to 0.0000"):
        evaluate_champion(**asked)
    deadline = time.monotonic() + 60  # the server writes events down in its own time
    while not events(prefect_server) and time.monotonic() < deadline:
        time.sleep(0.2)
    (told,) = events(prefect_server)
    assert told["resource"]["prefect.resource.id"] == f"wbc.model.{NAME}"
    assert told["payload"]["version"] == reference
