"""A count by a registry's champion: every slide names the version, whatever becomes champion while the run goes on."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fixture_types import RunFlow
from jobs import DARK_CARD
from painted import make_slide
from upath import UPath

from flows.count_slides import Listener, listening
from wbc.counting.handover import SlideOutcome
from wbc.models import builders, registry, versions

pytestmark = pytest.mark.dask
NAME = "wbc-detector"


def registered(folder: Path, smallest_px: int) -> str:
    card = replace(DARK_CARD, arguments=DARK_CARD.arguments | {"smallest_px": smallest_px})
    registry.save(folder, builders.build(card), card)
    return f"models:/{NAME}/{versions.register(folder, NAME)}"


class Overtaken(Listener):
    """Makes another version the champion when the first slide is done."""

    def __init__(self, other: str) -> None:
        self.other = other

    def slide_done(self, outcome: SlideOutcome) -> None:
        versions.promote(self.other)


def test_a_champion_that_changes_in_a_run_changes_nothing_for_it(
    mlflow_file: str, tmp_path: Path, run_flow: RunFlow
) -> None:
    first, second = registered(tmp_path / "a", 12), registered(tmp_path / "b", 13)
    versions.promote(first)
    for name in ("s1", "s2", "s3"):
        make_slide(UPath(tmp_path / "slides" / name), 2)
    with listening(Overtaken(second)):
        run_flow(UPath(tmp_path / "slides"), UPath(tmp_path / "out"), detector=f"models:/{NAME}@champion")
    assert versions.champion_or_bundled("detector") == second
    counted_by = pd.read_parquet(tmp_path / "out" / "slides")["detector"]
    digest = registry.read_card(first).digest[:12]
    assert counted_by.tolist() == [f"{first}@{digest}"] * 3
    run_flow(UPath(tmp_path / "slides"), UPath(tmp_path / "out"), detector=f"models:/{NAME}@champion")
    assert {name.rpartition("@")[0] for name in pd.read_parquet(tmp_path / "out" / "slides")["detector"]} == {second}
