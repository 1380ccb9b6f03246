"""Fields that overlap show some cells twice: each white cell counts once, and the slide says so."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from jobs import make_job
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner
from upath import UPath

from wbc.cells.geometry import box_iou
from wbc.cli.main import app
from wbc.counting.annotate import annotate_slide
from wbc.counting.left_out import left_out_of
from wbc.counting.recount import Change, recount_slides
from wbc.counting.slide import count_slide
from wbc.datasets.exported_cells import counted_pictures
from wbc.models import registry
from wbc.storage.corrections import Correction, write_corrections
from wbc.storage.counts import read_slide_row
from wbc.storage.layout import Layout
from wbc.storage.slides import discover
from wbc.storage.tables import SlideRow
from wbc.synth.smear import SmearSettings, draw_stain, render_field
from wbc.taxonomy import load_taxonomy

UM_PER_PX = 0.2
WIDE, OVERLAP = 1200, 500  # px: two fields of 850, of which 500 are in both
SIDE, APART = (WIDE + OVERLAP) // 2, (WIDE - OVERLAP) // 2
AROUND = 75  # px: what a cell is known again by reaches 13 µm


def fits(boxes: NDArray[np.float32], kinds: Sequence[str]) -> bool:
    """Whether some white cells lie in both fields, none of them near where one of these ends."""
    white = boxes[[kind not in ("rbc", "platelet") for kind in kinds]]
    x = (white[:, 0] + white[:, 2]) / 2
    in_both = (x > APART + AROUND) & (x < SIDE - AROUND)
    in_one = (x < APART - AROUND) | (x > SIDE + AROUND)
    return bool((in_both | in_one).all() and in_both.sum() >= 2)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> UPath:
    """A slide of two fields that overlap, and a third elsewhere."""
    folder = tmp_path_factory.mktemp("overlap") / "s1"
    folder.mkdir()
    rng = np.random.default_rng(3)
    settings = SmearSettings(height_px=600, width_px=WIDE, um_per_px=UM_PER_PX, white_cells_per_field=(7, 8))
    stain = draw_stain(rng)
    whole = next(p for p, boxes, kinds in (render_field(settings, rng, stain) for _ in range(99)) if fits(boxes, kinds))
    other, _, _ = render_field(settings, rng, stain)
    for name, pixels in (("a", whole[:, :SIDE]), ("b", whole[:, APART:]), ("c", other)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    Image.fromarray(whole).save(folder.with_name("whole.png"))
    return UPath(folder)


def counted(slide: UPath, out: UPath, threads: Executor, **changes: Any) -> SlideRow:
    detector, _ = registry.resolve("bundled:detector", "detector")
    (found,) = discover(slide)
    count_slide(replace(found, um_per_px=UM_PER_PX), make_job(out, detector=detector, **changes), threads)
    return read_slide_row(out, "s1")


@pytest.fixture(scope="module")
def out(slide: UPath, tmp_path_factory: pytest.TempPathFactory, threads: Executor) -> UPath:
    place = UPath(tmp_path_factory.mktemp("out") / "out")
    counted(slide, place, threads)
    return place


def white(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[~frame["cell_type"].isin(["rbc", "platelet"])]


def test_a_white_cell_that_two_fields_show_counts_once(
    slide: UPath, out: UPath, tmp_path: Path, threads: Executor
) -> None:
    row = read_slide_row(out, "s1")
    assert row.n_seen_again
    assert "fields_overlap" in row.flags
    apart = tmp_path / "apart" / "s1"
    apart.mkdir(parents=True)
    Path(slide.with_name("whole.png").path).rename(apart / "whole.png")
    Image.open(str(slide / "c.png")).save(apart / "c.png")
    as_one = counted(UPath(apart), UPath(tmp_path / "out"), threads)
    assert (as_one.n_seen_again, "fields_overlap" in as_one.flags) == (0, False)
    assert row.n_differential == as_one.n_differential


def test_both_sightings_are_kept_and_the_surer_one_is_the_cell(out: UPath) -> None:
    cells = white(pd.read_parquet(str(out / "cells")))
    found = pd.read_parquet(str(out / "detections"))
    sure = found[found["print"].notna() & (found["score"] >= 0.7)]
    assert set(sure["detector_class"]) == {"wbc"}
    assert len(sure) == len(cells) + (read_slide_row(out, "s1").n_seen_again or 0)
    fields = pd.read_parquet(str(out / "fields")).set_index("field")["n_cells"]
    assert fields.sum() == len(pd.read_parquet(str(out / "cells")))
    shift = np.where(sure["field"] == "b.png", APART, 0)
    moved = sure.assign(x0=sure["x0"] + shift, x1=sure["x1"] + shift)
    a, b = (moved[moved["field"] == name] for name in ("a.png", "b.png"))
    sides = ["x0", "y0", "x1", "y1"]
    twins = np.argwhere(box_iou(a[sides].to_numpy(np.float32), b[sides].to_numpy(np.float32)) > 0.7)
    assert len(twins) >= 2
    kept = set(zip(cells["field"], cells["x0"], strict=True))
    for i, j in twins:
        pair = sorted((a.iloc[i], b.iloc[j]), key=lambda r: -r["score"])
        shown = [(r["field"], sure["x0"][r.name]) in kept for r in pair]
        assert shown == [True, False]


def test_a_recount_leaves_them_out_as_well(out: UPath) -> None:
    before = read_slide_row(out, "s1")
    (outcome,) = recount_slides(out, ["s1"], Change(load_taxonomy("marrow_icsh"), None))
    assert outcome.status == "counted"
    after = read_slide_row(out, "s1")
    assert (after.n_seen_again, after.n_differential) == (before.n_seen_again, before.n_differential)


def test_what_a_person_names_counts(out: UPath) -> None:
    row = read_slide_row(out, "s1")
    found = pd.read_parquet(str(out / "detections"))
    cells = white(pd.read_parquet(str(out / "cells")))
    kept = set(zip(cells["field"], cells["x0"], strict=True))
    sure = found[found["print"].notna() & (found["score"] >= 0.7)]
    left = next(r for r in sure.to_dict("records") if (r["field"], r["x0"]) not in kept)
    digest = pd.read_parquet(str(out / "fields")).set_index("field")["digest"][left["field"]]
    box = tuple(float(left[side]) for side in ("x0", "y0", "x1", "y1"))
    said = Correction(left["field"], digest, box, "basophil", "anna", datetime(2026, 1, 1, tzinfo=UTC))
    write_corrections(out, "s1", [said])
    recount_slides(out, ["s1"], Change())
    named = read_slide_row(out, "s1")
    assert named.n_seen_again == (row.n_seen_again or 0) - 1
    assert named.n_corrected == 1


def test_a_drawing_shows_where_a_cell_counts_elsewhere(
    slide: UPath, tmp_path: Path, threads: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    out = UPath(tmp_path / "out")
    row = counted(slide, out, threads)
    left = left_out_of(out, row)
    assert sum(map(len, left.values())) == row.n_seen_again
    (found,) = discover(slide)
    annotate_slide(out, found, threads)
    for field, boxes in left.items():
        drawn = np.asarray(Image.open(str(Layout(out).drawings("s1", [field])[field]))).astype(int)
        for x0, y0, x1, _ in boxes:
            edge = drawn[int(y0) - 1 : int(y0) + 4, round(x0) + 20 : round(x1) - 20]
            assert (np.abs(edge - 110).max(2) < 40).mean(1).max() > 0.7
    counted_pictures(out, ["s1"])
    assert f"s1: {row.n_seen_again} white cells have no box in a field, as they count in another" in caplog.text


def test_it_is_said_in_words(slide: UPath, tmp_path: Path, threads: Executor) -> None:
    out = UPath(tmp_path / "out")
    n = counted(slide, out, threads).n_seen_again
    shown = " ".join(CliRunner().invoke(app, ["show", str(out)]).stdout.split())
    assert f"{n} white cells are seen in a second field, too, and counted once" in shown
