"""A recount from the detections that stand equals a count from pixels, cell for cell, and opens no field."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import make_job
from torch import Tensor, nn
from typer.testing import Result
from upath import UPath

from benchmarks.counted import read_tables
from wbc.counting import recount as recount_room
from wbc.counting import worker
from wbc.counting.recount import Change, recount_slides, recounted
from wbc.counting.slide import CountSettings, Job, count_slide, is_counted, record_failure
from wbc.models import bfloat16
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel, ModelRef
from wbc.storage import atomic
from wbc.storage.counts import committed_count_id, read_evidence, read_slide_row
from wbc.storage.layout import TABLES, Layout
from wbc.storage.lock import OutInUse, holding
from wbc.storage.slides import discover
from wbc.taxonomy import load_taxonomy
from wbc.types import Slide

KINDS = ("band_neutrophil", "segmented_neutrophil", "lymphocyte", "monocyte", "erythroblast")
TAXONOMIES = ("blood", "marrow_icsh", "wang2021")
SCORES = st.one_of(st.sampled_from([0.05, 0.5, 0.7, 1.0]), st.floats(0.05, 1.0))


class Doubtful(nn.Module):
    """Overlapping boxes all over a tile, of every class and score, which hang on the place and on what is there."""

    def forward(self, tiles: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self._boxes(tile) for tile in tiles]

    def _boxes(self, tile: Tensor) -> dict[str, Tensor]:
        y, x = np.mgrid[4 : tile.shape[1] - 30 : 8, 4 : tile.shape[2] - 30 : 9].reshape(2, -1)
        n = len(y)
        at = 1000 * (tile.mean(0)[y, x].numpy() * 7 + np.sin(y * 0.37 + x * 0.11) + 1)
        boxes = np.stack([x, y, x + 22 + y % 5, y + 22 + x % 5], 1).astype(np.float32)
        scores = (at % 1).astype(np.float32)
        return {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(1 + (np.arange(n) + y) % 3),
            "scores": torch.from_numpy(scores),
        }


class Doubting(nn.Module):
    """A name for every crop, none of them sure."""

    def forward(self, crops: Tensor) -> Tensor:
        middle = crops[:, :, 8:24, 8:24].mean((2, 3))
        spread = crops.std((2, 3))
        return torch.stack([*middle.T, *spread.T[:2]], 1) * 3


@pytest.fixture(scope="module")
def doubtful(dark_card: ModelCard) -> Callable[..., LoadedModel]:
    """Both models in place of saved ones."""
    half, cpu = (0.5, 0.5, 0.5), torch.device("cpu")
    detector = replace(dark_card, classes=("rbc", "platelet", "wbc"))
    classifier = ModelCard("c", "1", "classifier", "crop_classifier", {}, KINDS, 0.3, 32, half, half, "", threshold=0.4)
    models = {"d": LoadedModel(Doubtful(), detector, cpu), "c": LoadedModel(Doubting(), classifier, cpu)}
    return lambda ref, device, engine="torch": models[ref.reference]


@pytest.fixture
def job(tmp_path: Path, doubtful: Any, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A count by two models that are sure of nothing."""
    monkeypatch.setattr(worker, "ready_classifier", doubtful)
    monkeypatch.setattr(worker, "ready_detector", lambda ref, device, _: doubtful(ref, device))
    models = {"detector": ModelRef("d", "1" * 64), "classifier": ModelRef("c", "2" * 64)}
    return make_job(UPath(tmp_path / "out"), **models)


@pytest.fixture
def slide(painted_slide: UPath) -> Slide:
    """Three fields, one that cannot be read, and one that is there twice; of two scales."""
    (painted_slide / "broken.png").write_bytes(b"no picture")
    (painted_slide / "g001.png").write_bytes((painted_slide / "f001.png").read_bytes())
    (slide,) = discover(painted_slide)
    return replace(slide, um_per_px=0.2)


def asked(job: Job, out: UPath, min_score: float, taxonomy: str) -> Job:
    return replace(job, out=out, settings=CountSettings(min_score=min_score), taxonomy=load_taxonomy(taxonomy))


def assert_equal(out: UPath, expected: UPath) -> None:
    """Two OUTs say the same of each slide, but for when they say it and how long it took."""
    seen, wanted = read_tables(out), read_tables(expected)
    for table in TABLES:
        pd.testing.assert_frame_equal(seen[table], wanted[table])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=SCORES, second=SCORES, taxonomies=st.tuples(*[st.sampled_from(TAXONOMIES)] * 2))
def test_a_recount_equals_a_count_from_pixels_cell_for_cell(
    slide: Slide, job: Job, threads: Executor, tmp_path: Path, first: float, second: float, taxonomies: tuple[str, str]
) -> None:
    shutil.rmtree(tmp_path / "from-pixels", ignore_errors=True)
    shutil.rmtree(tmp_path / "recounted", ignore_errors=True)
    pixels, other = UPath(tmp_path / "from-pixels"), UPath(tmp_path / "recounted")
    count_slide(slide, asked(job, pixels, second, taxonomies[1]), threads)
    count_slide(slide, asked(job, other, first, taxonomies[0]), threads)
    (outcome,) = recount_slides(other, ["s1"], Change(load_taxonomy(taxonomies[1]), second))
    assert outcome.reason == ""
    assert_equal(other, pixels)
    row = read_slide_row(other, "s1")
    assert row.n_cells == len(pd.read_parquet(other / "cells" / "s1.parquet"))
    assert is_counted(slide, asked(job, other, second, taxonomies[1]))


def test_a_count_of_a_gpu_says_so_has_an_id_of_its_own_and_stands(
    slide: Slide, job: Job, threads: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_slide(slide, job, threads)
    here, on_gpu = read_slide_row(job.out, "s1"), replace(job, out=UPath(tmp_path / "gpu"))
    monkeypatch.setattr(bfloat16, "precision_of", lambda *_: "bfloat16 on cuda")  # as there; all else is as here
    count_slide(slide, on_gpu, threads)
    there = read_slide_row(on_gpu.out, "s1")
    assert (here.precision, there.precision) == ("float32", "bfloat16 on cuda")
    assert here.count_id != there.count_id
    monkeypatch.undo()
    assert is_counted(slide, on_gpu)
    (outcome,) = recount_slides(on_gpu.out, ["s1"], Change(job.taxonomy, 0.3))
    assert (outcome.reason, read_slide_row(on_gpu.out, "s1").precision) == ("", "bfloat16 on cuda")


def no_model_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("this is not needed")

    for name in ("ready_classifier", "ready_detector", "field_content", "read_pixels"):
        monkeypatch.setattr(worker, name, forbidden)


def test_the_models_say_more_than_is_counted_and_a_cell_has_a_second_name(
    slide: Slide, job: Job, threads: Executor
) -> None:
    count_slide(slide, job, threads)
    cells, detections, fields = (
        pd.read_parquet(job.out / table / "s1.parquet") for table in ("cells", "detections", "fields")
    )
    assert 0.05 <= detections["score"].min() < 0.1
    again = read_slide_row(job.out, "s1").n_seen_again or 0  # the fields are painted much alike
    assert len(cells) + again == (detections["score"] >= np.float32(0.7)).sum() > 100
    white = detections[detections["detector_class"] == "wbc"]
    assert detections.index[detections["probabilities"].notna()].equals(white.index)
    assert {tuple(kinds) for kinds in white["kinds"]} == {KINDS}
    probabilities = np.stack(white["probabilities"].to_list())
    assert probabilities.dtype == np.float16
    np.testing.assert_allclose(probabilities.sum(1, dtype=np.float64), 1, atol=0.01)
    assert len(set(detections["detections_id"])) == 1
    named = cells[cells["type_score"].notna()]
    assert named["second_type"].notna().all()
    assert cells["second_score"].isna().equals(cells["type_score"].isna())
    finest = named[~named["cell_type"].isin(["neutrophil", "unidentified"])]
    assert (finest["second_score"] <= finest["type_score"]).all()

    by_field = fields.set_index("field")
    assert by_field["status"].to_dict() == {
        "broken.png": "failed",
        **dict.fromkeys(["f000.png", "f001.png", "f002.png"], "counted"),
        "g001.png": "duplicate",
    }
    counted = by_field[by_field["status"] == "counted"]
    assert counted["n_cells"].to_dict() == cells.groupby("field").size().to_dict()
    assert by_field.loc["g001.png", "duplicate_of"] == "f001.png"
    assert by_field.loc["broken.png", "reason"] == "is no JPEG, PNG, TIFF or BMP image"
    assert by_field.loc["f000.png", ["height_px", "width_px", "um_per_px", "scale_from"]].tolist() == [
        *(240, 320),
        *(0.2, "given"),
    ]
    assert by_field.loc["f001.png", "digest"] == by_field.loc["g001.png", "digest"]
    assert all(seconds["detect"] > 0 for seconds in counted["seconds"])
    assert read_slide_row(job.out, "s1").run_id == job.run_id


def test_another_score_or_taxonomy_is_counted_without_a_field_or_a_model(
    slide: Slide, job: Job, threads: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_slide(slide, job, threads)
    old, before = read_slide_row(job.out, "s1"), {t: (job.out / t / "s1.parquet").read_bytes() for t in TABLES}
    other = asked(job, job.out, 0.4, "wang2021")
    count_slide(slide, replace(other, out=UPath(tmp_path / "pixels")), threads)
    no_model_may_run(monkeypatch)
    outcome = recounted(slide, other)
    assert outcome is not None
    assert outcome.status == "counted"
    assert is_counted(slide, other)
    assert_equal(job.out, UPath(tmp_path / "pixels"))
    assert old.count_id is not None
    for table in TABLES:
        kept = job.out / "history" / old.count_id / table / "s1.parquet"
        assert kept.read_bytes() == before[table]
    again = recounted(slide, other)
    assert again is not None
    assert again.status == "unchanged"


@pytest.mark.parametrize(
    "changes",
    [
        {"detector": ModelRef("d", "3" * 64)},
        {"classifier": None},
        {"settings": CountSettings(min_score=0.02)},
        {"settings": CountSettings(look_fields=2)},
        {"force": True},
        {"verify": True},
    ],
)
def test_what_the_models_were_not_asked_is_not_recounted(
    slide: Slide, job: Job, threads: Executor, changes: dict[str, Any]
) -> None:
    count_slide(slide, job, threads)
    assert recounted(slide, replace(job, **changes)) is None
    assert recounted(replace(slide, um_per_px=0.3), job) is None
    (slide.field_paths[1]).write_bytes(slide.field_paths[2].read_bytes())
    assert recounted(slide, asked(job, job.out, 0.4, "blood")) is None


def test_fields_that_were_touched_are_read_and_their_detections_counted(
    slide: Slide, job: Job, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_slide(slide, job, threads)
    monkeypatch.setattr("wbc.cells.detect.detect", None)
    done: list[tuple[int, int]] = []
    other = replace(asked(job, job.out, 0.4, "blood"), verify=True)
    outcome = count_slide(slide, other, threads, lambda *step: done.append(step))
    assert (outcome.status, len(outcome.failed_fields)) == ("counted", 1)
    assert done == [(4, outcome.n_cells)]
    assert is_counted(slide, replace(other, verify=False))
    assert not list(Path(job.out.path).rglob("*.zarr"))


def test_a_score_below_those_kept_is_counted_from_pixels_and_refused_by_a_recount(
    slide: Slide, job: Job, threads: Executor
) -> None:
    count_slide(slide, job, threads)
    standing = committed_count_id(job.out, "s1")
    (outcome,) = recount_slides(job.out, ["s1"], Change(min_score=0.01))
    assert outcome.status == "unchanged"
    assert (
        "not recounted: cells with a score from 0.01 on are asked for, and none below 0.05 were kept" in outcome.reason
    )
    assert committed_count_id(job.out, "s1") == standing
    low = asked(job, job.out, 0.01, "blood")
    count_slide(slide, low, threads)
    assert read_evidence(job.out, "s1")[1].origin.lowest_score == 0.01
    assert recount_slides(job.out, ["s1"], Change(min_score=0.02))[0].status == "counted"


def test_what_is_not_named_stays_and_the_same_count_is_left_alone(slide: Slide, job: Job, threads: Executor) -> None:
    count_slide(slide, asked(job, job.out, 0.6, "marrow_icsh"), threads)
    first = read_slide_row(job.out, "s1")
    assert recount_slides(job.out, ["s1"], Change())[0].status == "unchanged"
    assert read_slide_row(job.out, "s1") == first
    recount_slides(job.out, ["s1"], Change(min_score=0.3))
    row = read_slide_row(job.out, "s1")
    assert (row.taxonomy, row.min_score, row.precision) == ("marrow_icsh", 0.3, first.precision)
    recount_slides(job.out, ["s1"], Change(load_taxonomy("blood")))
    row = read_slide_row(job.out, "s1")
    assert (row.taxonomy, row.min_score) == ("blood", 0.3)
    assert row.run_id not in (None, first.run_id)
    recount_slides(job.out, ["s1"], Change(load_taxonomy("marrow_icsh"), 0.6))
    assert read_slide_row(job.out, "s1").count_id == first.count_id


def test_a_taxonomy_that_is_a_laboratorys_own_must_be_named_again(slide: Slide, job: Job, threads: Executor) -> None:
    own = replace(load_taxonomy("blood"), nrbc=None)
    count_slide(slide, replace(job, taxonomy=own), threads)
    (outcome,) = recount_slides(job.out, ["s1"], Change(min_score=0.3))
    assert "a taxonomy 'blood' that did not come along: name its file" in outcome.reason
    assert recount_slides(job.out, ["s1"], Change(own, 0.3))[0].status == "counted"


def test_a_taxonomy_that_does_not_know_a_class_changes_nothing(slide: Slide, job: Job, threads: Executor) -> None:
    count_slide(slide, job, threads)
    narrow = replace(
        load_taxonomy("blood"), cell_types=load_taxonomy("blood").cell_types[-2:], thresholds=(), nrbc=None, priors=()
    )
    narrow = replace(narrow, aliases=())
    (outcome,) = recount_slides(job.out, ["s1"], Change(narrow))
    assert "not recounted: taxonomy blood does not know" in outcome.reason
    assert is_counted(slide, job)


def drop_detections(out: UPath) -> None:
    """Leave OUT as a version before there were detections did."""
    path = out / "slides" / "s1.parquet"
    row = pq.ParquetFile(path.path).read().drop_columns(["run_id", "fields_digest", "detections_digest"])
    pq.write_table(row.replace_schema_metadata(None), path.path)
    for table in ("fields", "detections"):
        shutil.rmtree((out / table).path)


def test_a_count_of_an_older_version_is_read_and_counted_from_pixels(slide: Slide, job: Job, threads: Executor) -> None:
    count_slide(slide, job, threads)
    drop_detections(job.out)
    assert read_slide_row(job.out, "s1").run_id is None
    (outcome,) = recount_slides(job.out, ["s1"], Change(min_score=0.3))
    assert "an older version counted it, which kept no detections; `wbc count` counts it anew" in outcome.reason
    assert not is_counted(slide, job)
    assert recounted(slide, job) is None
    assert count_slide(slide, job, threads).status == "counted"
    assert recount_slides(job.out, ["s1"], Change(min_score=0.3))[0].status == "counted"


def test_detections_of_another_way_of_counting_are_not_counted(
    slide: Slide, job: Job, threads: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_slide(slide, job, threads)
    monkeypatch.setattr(recount_room, "COUNTING_VERSION", recount_room.COUNTING_VERSION + 1)
    (outcome,) = recount_slides(job.out, ["s1"], Change(min_score=0.3))
    assert "made by another version" in outcome.reason


@pytest.mark.parametrize("table", ["cells", "fields", "detections"])
def test_a_broken_count_is_not_recounted_and_stops_no_other(
    slide: Slide, job: Job, threads: Executor, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wbc.storage.counts.PATIENCE_SECONDS", 0.0)
    count_slide(slide, job, threads)
    count_slide(replace(slide, slide_id="s2"), job, threads)
    (job.out / table / "s1.parquet").write_bytes(b"PAR1 broken")
    broken, whole = recount_slides(job.out, ["s1", "s2"], Change(min_score=0.3))
    assert "not recounted: " in broken.reason
    assert (whole.status, whole.reason) == ("counted", "")
    assert recounted(slide, asked(job, job.out, 0.4, "blood")) is None


@pytest.mark.parametrize("n_written", [2, 6, 8, 9])  # files: five go into the history, then five of the new count
def test_a_recount_that_was_killed_is_done_again_from_its_detections_alone(
    slide: Slide, job: Job, threads: Executor, tmp_path: Path, n_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn count is no dead end: its slides may not be at hand."""
    monkeypatch.setattr("wbc.storage.counts.PATIENCE_SECONDS", 0.0)
    count_slide(slide, job, threads)
    shutil.copytree(job.out.path, tmp_path / "undisturbed")
    recount_slides(UPath(tmp_path / "undisturbed"), ["s1"], Change(min_score=0.3))
    publish, n_left = atomic.publish, iter(range(n_written, -1, -1))

    def killed(temporary: UPath, path: UPath) -> None:
        if path.suffix == ".parquet" and not next(n_left):
            raise KeyboardInterrupt
        publish(temporary, path)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(atomic, "publish", killed)
        recount_slides(job.out, ["s1"], Change(min_score=0.3))
    (outcome,) = recount_slides(job.out, ["s1"], Change(min_score=0.3))
    assert outcome.reason == ""
    assert_equal(job.out, UPath(tmp_path / "undisturbed"))
    (history,) = (job.out / "history").iterdir()
    assert_equal(history, UPath(tmp_path / "undisturbed" / "history" / history.name))


def test_a_slide_that_was_not_counted_is_not_recounted(slide: Slide, job: Job) -> None:
    record_failure(slide, job, "a worker died 3 times")
    fields = pd.read_parquet(job.out / "fields" / "s1.parquet")
    assert set(fields["status"]) == {"not_counted"}
    (outcome,) = recount_slides(job.out, ["s1"], Change(min_score=0.3))
    assert "no whole count of it stands" in outcome.reason
    assert read_slide_row(job.out, "s1").reason == "a worker died 3 times"


def test_a_slide_of_bad_fields_alone_fails_by_a_recount_too(tmp_path: Path, job: Job, threads: Executor) -> None:
    (tmp_path / "slides" / "s1").mkdir(parents=True)
    (tmp_path / "slides" / "s1" / "a.png").write_bytes(b"no picture")
    (slide,) = discover(UPath(tmp_path / "slides"))
    counted = count_slide(slide, job, threads)
    outcome = recounted(slide, asked(job, job.out, 0.4, "blood"))
    assert outcome is not None
    assert (outcome.status, outcome.reason) == ("failed", counted.reason)


def test_a_recount_is_the_one_writer_of_its_out(slide: Slide, job: Job, threads: Executor) -> None:
    count_slide(slide, job, threads)
    with holding(job.out, "another"), pytest.raises(OutInUse, match="run another"):
        recount_slides(job.out, ["s1"], Change(min_score=0.3))
    assert Layout(job.out).slide_ids("detections") == ["s1"]


# The command


@pytest.fixture
def counted(painted_slide: UPath, threads: Executor, tmp_path: Path) -> Job:
    """Two counted slides, whose detector is sure of each of 18 red cells."""
    job = make_job(UPath(tmp_path / "out"))
    for slide_id in ("s1", "s2"):
        count_slide(replace(discover(painted_slide)[0], slide_id=slide_id), job, threads)
    return job


def test_the_command_counts_slides_of_an_out_again(
    counted: Job, wbc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_model_may_run(monkeypatch)
    told = wbc("recount", counted.out, "s2", "--taxonomy", "wang2021", "--min-score", 0.9, "--json")
    assert told.exit_code == 0, told.stderr
    (slide,) = json.loads(told.stdout)["slides"]
    assert [slide[key] for key in ("slide_id", "status", "taxonomy", "min_score")] == ["s2", "counted", "wang2021", 0.9]
    assert (slide["n_cells"], slide["failed_fields"]) == (18, [])
    assert read_slide_row(counted.out, "s1").taxonomy == "blood"
    told = wbc("recount", counted.out, "--min-score", 0.9)
    assert told.exit_code == 0
    assert [read_slide_row(counted.out, s).min_score for s in ("s1", "s2")] == [0.9, 0.9]
    assert "s1" in told.stdout
    assert "s2" in told.stdout


def test_the_command_refuses_what_it_cannot_do(counted: Job, wbc: Callable[..., Result]) -> None:
    for words, reason in [
        (("s3",), "no count of slide 's3'; there are s1, s2"),
        (("--taxonomy", "nonesuch"), "nonesuch"),
        (("--min-score", 1.5), "min_score 1.5 is not between 0 and 1"),
    ]:
        told = wbc("recount", counted.out, *words)
        assert told.exit_code == 2
        assert reason in told.stderr
    assert wbc("recount", counted.out / "nowhere").exit_code == 2
    with holding(counted.out, "another"):
        told = wbc("recount", counted.out, "--min-score", 0.3)
    assert told.exit_code == 2
    assert "is written by" in told.stderr
    told = wbc("recount", counted.out, "--min-score", 0.01)
    assert told.exit_code == 3
    assert told.stderr.count("not recounted: ") == 2
    assert {read_slide_row(counted.out, s).min_score for s in ("s1", "s2")} == {0.7}
