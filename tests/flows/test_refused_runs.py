"""Runs of the count-slides flow that cannot be: each says why, and touches nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixture_types import CommitSlide, RunFlow
from prefect.exceptions import ParameterTypeError
from upath import UPath

from flows import count_slides as flow_module
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.storage.counts import change_source
from wbc.storage.lock import OutInUse, holding

pytestmark = pytest.mark.dask


def test_a_slide_of_another_folder_stops_the_flow_before_a_cluster_starts(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, monkeypatch: pytest.MonkeyPatch, commit_slide: CommitSlide
) -> None:
    out = UPath(tmp_path / "out")
    commit_slide(out, "long", ["rbc"])
    change_source(out, "long", "/other/long")
    monkeypatch.setattr(flow_module, "open_cluster", None)
    with pytest.raises(ValueError, match=f"'long' was '/other/long' and is '{slides}/long' now"):
        run_flow(slides, out)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"detector": "/no/such/model"}, ValueError, "/no/such/model"),
        ({"classifier": "bundled:nonesuch"}, ValueError, "bundled:nonesuch"),
        ({"taxonomy": "nonesuch"}, ValueError, "nonesuch"),
        ({"min_score": 2.0}, ParameterTypeError, "min_score: Input should be less"),
        ({"um_per_px": -1.0}, ParameterTypeError, "um_per_px: Input should be greater"),
        ({"workers": 2}, ValueError, "has its workers"),
        ({"settings": "/no/such/file.toml"}, ValueError, "/no/such/file.toml"),
    ],
)
def test_run_that_cannot_be_says_why_before_it_starts(
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
    slides: UPath,
    tmp_path: Path,
    run_flow: RunFlow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flow_module, "open_cluster", lambda *_: pytest.fail("a cluster was started"))
    with pytest.raises(error) as raised:
        run_flow(slides, UPath(tmp_path / "out"), **changes)
    assert words in str(raised.value)


def test_model_that_names_what_the_taxonomy_does_not_know_is_refused(
    slides: UPath, tmp_path: Path, run_flow: RunFlow, dark_card: ModelCard
) -> None:
    registry.save(tmp_path / "pottery", builders.build(dark_card), replace(dark_card, classes=("teapot",)))
    with pytest.raises(ValueError, match="teapot"):
        run_flow(slides, UPath(tmp_path / "out"), detector=str(tmp_path / "pottery"))


def test_slides_that_are_not_there_and_out_that_is_a_file(slides: UPath, tmp_path: Path, run_flow: RunFlow) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_flow(slides / "nowhere", UPath(tmp_path / "out"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run_flow(slides, UPath(tmp_path / "file"))


def test_a_flow_that_meets_another_run_on_its_out_is_refused_and_touches_nothing(
    slides: UPath, tmp_path: Path, run_flow: RunFlow
) -> None:
    out = UPath(tmp_path / "out")
    group = out / ".wbc" / "pixels" / "night-7" / "long.zarr"
    with holding(out, "night-7"):
        group.mkdir(parents=True)
        with pytest.raises(OutInUse, match=r"is written by .*run night-7 \(process \d+ on .*, since "):
            run_flow(slides, out)
        assert group.exists()
        assert not (out / "cells").exists()
