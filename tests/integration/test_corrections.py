"""What people say of a slide's cells counts in place of what the models said, and outlasts every later count."""

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jobs import make_job
from PIL import Image
from typer.testing import Result
from upath import UPath

from wbc.counting.corrections_file import CorrectionsFile
from wbc.counting.parameters import CountParameters
from wbc.counting.recount import Change, recount_slides
from wbc.counting.slide import CountSettings, Job, count_slide, is_counted, record_failure
from wbc.counting.standing import request_of, standing_outcomes
from wbc.datasets.exported_cells import common_folder, counted_pictures
from wbc.datasets.formats import WRITERS, write_pictures
from wbc.storage.counts import read_slide_row, retire
from wbc.storage.slides import discover
from wbc.types import Slide

COLUMNS = ["slide_id", "field", "cell_id", "cell_type"]
Wbc = Callable[..., Result]


@pytest.fixture
def slide(painted_slide: UPath) -> Slide:
    (slide,) = discover(painted_slide)
    return replace(slide, um_per_px=0.2)


@pytest.fixture
def job(slide: Slide, threads: Executor, tmp_path: Path) -> Job:
    """A counted slide: 18 red cells in three fields, all of them sure."""
    job = make_job(UPath(tmp_path / "out"))
    count_slide(slide, job, threads)
    return job


def cells_of(job: Job) -> pd.DataFrame:
    return pd.read_parquet(job.out / "cells" / "s1.parquet")


def named(job: Job, path: Path, names: dict[int, str]) -> Path:
    """A table that gives names to cells."""
    rows = cells_of(job).set_index("cell_id", drop=False).loc[list(names)]
    rows.assign(cell_type=list(names.values()))[COLUMNS].to_csv(path, index=False)
    return path


def correct(job: Job, path: Path, by: str = "anna") -> str:
    (outcome,) = recount_slides(job.out, ["s1"], Change(corrections=CorrectionsFile(path, by)))
    assert not outcome.reason
    return outcome.status


def test_names_of_people_count_and_stand_beside_those_of_the_models(job: Job, tmp_path: Path) -> None:
    before = read_slide_row(job.out, "s1")
    told = {0: "lymphocyte", 3: "Monocyte", 4: "not_a_white_cell", 5: "rbc"}
    assert correct(job, named(job, tmp_path / "c.csv", told)) == "counted"
    cells, row = cells_of(job), read_slide_row(job.out, "s1")
    assert list(cells["cell_type"][[0, 3, 4, 5]]) == ["lymphocyte", "monocyte", "not_a_white_cell", "rbc"]
    assert set(cells["predicted_type"]) == {"rbc"}
    assert set(cells["corrected_by"].dropna()) == {"anna"}
    assert list(cells["corrected_at"].notna().to_numpy().nonzero()[0]) == [0, 3, 4]  # the sixth is named as it was
    counts = pd.read_parquet(job.out / "differentials" / "s1.parquet").set_index("cell_type")["count"]
    assert (counts["lymphocyte"], counts["monocyte"], counts["rbc"]) == (1, 1, 15)
    assert (row.n_corrected, row.n_differential) == (3, 2)
    assert row.count_id != before.count_id
    history = job.out / "history" / str(before.count_id)
    assert set(pd.read_parquet(history / "cells" / "s1.parquet")["cell_type"]) == {"rbc"}
    why = json.loads((history / "superseded" / "s1.json").read_text())
    assert (why["replaced_by"], why["why"]) == (row.count_id, "recounted: anna named 3 cells")


def test_the_next_count_has_nothing_to_do_and_keeps_them(
    job: Job, slide: Slide, threads: Executor, tmp_path: Path
) -> None:
    correct(job, named(job, tmp_path / "c.csv", {0: "lymphocyte"}))
    corrected = read_slide_row(job.out, "s1")
    assert is_counted(slide, job)
    assert count_slide(slide, job, threads).status == "unchanged"
    assert correct(job, named(job, tmp_path / "again.csv", {0: "lymphocyte"}), by="ben") == "unchanged"
    count_slide(slide, replace(job, force=True), threads)
    assert read_slide_row(job.out, "s1").count_id == corrected.count_id
    (outcome,) = recount_slides(job.out, ["s1"], Change(min_score=0.9))
    assert (outcome.status, cells_of(job)["cell_type"][0]) == ("counted", "lymphocyte")


def test_the_nightly_run_sees_that_nothing_is_to_do(
    job: Job, slide: Slide, threads: Executor, tmp_path: Path, dark_folder: Path
) -> None:
    root = str(slide.field_paths[0].parent)
    parameters = CountParameters(root, str(job.out), detector=str(dark_folder), classifier=None, um_per_px=0.2)
    correct(job, named(job, tmp_path / "c.csv", {0: "lymphocyte"}))
    outcomes = standing_outcomes(request_of(parameters))
    assert outcomes is not None
    assert [outcome.status for outcome in outcomes] == ["unchanged"]


@pytest.mark.parametrize("after", ["a failure", "another score", "a count that was taken out"])
def test_they_outlast_whatever_becomes_of_the_count(
    after: str, job: Job, slide: Slide, threads: Executor, tmp_path: Path
) -> None:
    correct(job, named(job, tmp_path / "c.csv", {0: "lymphocyte", 17: "monocyte"}))
    other = job
    if after == "a failure":
        record_failure(slide, job, "a worker died 3 times")
    elif after == "another score":
        other = replace(job, settings=CountSettings(min_score=0.1))
    else:
        retire(job.out, "s1")
    count_slide(slide, other, threads)
    assert sorted(cells_of(job)["cell_type"])[:3] == ["lymphocyte", "monocyte", "rbc"]


def test_a_field_that_is_another_picture_now_has_none(
    job: Job, slide: Slide, threads: Executor, tmp_path: Path
) -> None:
    correct(job, named(job, tmp_path / "c.csv", {0: "lymphocyte", 17: "monocyte"}))
    first, last = slide.field_paths[0], slide.field_paths[-1]
    Image.open(str(last)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(str(first))
    count_slide(slide, job, threads)
    assert "lymphocyte" not in set(cells_of(job)["cell_type"])
    assert "monocyte" in set(cells_of(job)["cell_type"])


def test_a_later_word_takes_the_place_of_an_earlier_one_and_all_can_be_forgotten(job: Job, tmp_path: Path) -> None:
    before = read_slide_row(job.out, "s1")
    correct(job, named(job, tmp_path / "a.csv", {0: "lymphocyte", 1: "monocyte"}))
    correct(job, named(job, tmp_path / "b.csv", {0: "eosinophil"}), by="ben")
    assert list(cells_of(job)["cell_type"][:2]) == ["eosinophil", "monocyte"]
    assert list(cells_of(job)["corrected_by"][:2]) == ["ben", "anna"]
    recount_slides(job.out, ["s1"], Change(forget=True))
    assert read_slide_row(job.out, "s1").count_id == before.count_id
    assert not (job.out / "corrections" / "s1.parquet").exists()


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_an_export_that_was_corrected_comes_back_with_cells_that_were_missed(
    form: str, job: Job, tmp_path: Path
) -> None:
    pictures = counted_pictures(job.out, ["s1"])
    labels = ("basophil", *pictures[0].labels[1:], "eosinophil")
    boxes = np.concatenate([pictures[0].boxes + 1, np.array([[2, 2, 9, 9]], np.float32)])
    mended = replace(pictures[0], labels=labels, boxes=boxes, measurements=())
    target = tmp_path / {"cvat": "m.xml", "geojson": "m"}.get(form, "m.json")
    write_pictures(target, [mended], common_folder(pictures), form)
    correct(job, target)
    cells = cells_of(job)
    assert (len(cells), cells["cell_type"][0], cells["predicted_type"][0]) == (19, "basophil", "rbc")
    missed = cells.iloc[-1]
    assert (missed["cell_type"], missed["field"]) == ("eosinophil", pictures[0].path.name)
    assert pd.isna(missed["predicted_type"])
    assert pd.isna(missed["score"])
    assert read_slide_row(job.out, "s1").n_corrected == 2
    correct(job, named(job, tmp_path / "not.csv", {18: "not_a_white_cell"}))
    assert len(cells_of(job)) == 18


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("s1,f000.png,99,lymphocyte", "line 3: the count has no cell 99"),
        ("s1,nowhere.png,0,lymphocyte", "line 3: the count has no cell 0 in field 'nowhere.png'"),
        ("s2,f000.png,0,lymphocyte", "line 3: slide 's2' is none that is recounted"),
        ("s1,f000.png,0,leukocyte thing", "line 3: 'leukocyte_thing' is no cell type of the taxonomy blood"),
        ("s1,f000.png,x,lymphocyte", "line 3: cell_id is 'x'"),
        ("s1,FIRST,0,monocyte", "line 3: cell 0 is lymphocyte in"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_taken(line: str, reason: str, job: Job, tmp_path: Path) -> None:
    before, first = read_slide_row(job.out, "s1"), cells_of(job)["field"][0]
    path = tmp_path / "c.csv"
    path.write_text(f"{','.join(COLUMNS)}\ns1,{first},0,lymphocyte\n{line.replace('FIRST', first)}\n")
    with pytest.raises(ValueError, match=f"c.csv: {reason}"):
        correct(job, path)
    assert read_slide_row(job.out, "s1") == before
    assert not (job.out / "corrections").exists()


def test_broken_corrections_fail_the_slide_and_are_not_counted_without(
    job: Job, slide: Slide, threads: Executor, tmp_path: Path
) -> None:
    correct(job, named(job, tmp_path / "c.csv", {0: "lymphocyte"}))
    (job.out / "corrections" / "s1.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"corrections/s1.parquet' holds no corrections"):
        count_slide(slide, job, threads)
    assert cells_of(job)["cell_type"][0] == "lymphocyte"


def test_the_command_says_who_corrected(job: Job, tmp_path: Path, wbc: Wbc) -> None:
    path = named(job, tmp_path / "c.csv", {0: "lymphocyte", 1: "lymphocyte"})
    result = wbc("recount", str(job.out), "s1", "--corrections", str(path), "--by", "anna")
    assert result.exit_code == 0, result.output
    assert "2 cells named by anna" in result.output
    assert "2 cells named by anna" in wbc("show", str(job.out)).output
    (shown,) = json.loads(wbc("show", str(job.out), "--json").stdout)["slides"]
    assert (shown["n_corrected"], shown["reviewers"]) == (2, ["anna"])
    wrong = wbc("recount", str(job.out), "--corrections", str(path), "--without-corrections")
    assert wrong.exit_code == 2
