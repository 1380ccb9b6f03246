"""The benchmarks run as their README says and print their figures, here on sizes that take no time."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from upath import UPath

from benchmarks import (
    attack,
    common,
    gpu,
    gpu_busy,
    gpu_copies,
    gpu_fields,
    gpu_stages,
    gpu_subject,
    gpu_variants,
    limits,
    memory,
    merge,
    naming,
    overhead,
    promise,
    readers,
    rivals,
    scale_out,
    start_up,
    taught_limits,
    white_cells,
    whole_run,
)
from benchmarks.taught import Bench
from wbc.counting.slide import Job, count_slide
from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.reference_cells import ReferenceCells, keep_reference_cells
from wbc.storage.slides import discover
from wbc.synth.smear import SmearSettings, render_field
from wbc.taxonomy import load_taxonomy
from wbc.training.last_layer import LastLayer, NamedCells


def figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: Any, *options: str) -> Any:
    """What a benchmark prints as JSON."""
    monkeypatch.setattr(sys, "argv", [module.__name__, "--json", *options])
    module.main()
    return json.loads(capsys.readouterr().out)


def test_merge_agrees_with_torchvision(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = figures(capsys, monkeypatch, merge, "--sizes", "50", "400", "--rounds", "1")
    (rows,) = report["tables"].values()
    assert [row["boxes"] for row in rows] == [50, 400, 50, 400]
    assert all(row["kept"] == row["batched_nms kept"] for row in rows)
    assert [claim["at_most"] for claim in report["claims"]] == [1.0, 1.0]
    assert all(claim["value"] > 0 for claim in report["claims"])


def test_naming_compares_a_classifier_with_itself_made_ready(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = figures(capsys, monkeypatch, naming, "--cells", "3", "--rounds", "1")
    (rows,) = report["tables"].values()
    assert [row["classifier"] for row in rows] == ["", "as trained", "as trained", "ready", "ready"]
    assert all(row["least"] > 0 for row in rows)
    assert report["claims"][1]["met"]


def test_overhead_tells_the_whole_from_the_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = figures(capsys, monkeypatch, overhead, "--fields", "2", "--rounds", "1", "--size", "240", "320")
    runs, steps, startup = report["tables"].values()
    assert runs[0]["whole"] > runs[0]["overhead"] > 0
    assert runs[0]["models"] > 0
    assert report["claims"][0]["value"] == pytest.approx(runs[0]["overhead"])
    assert {"decode", "store: write", "store: read", "scale", "tile, tensors, merge"} < {row["part"] for row in steps}
    assert [row["part"] for row in startup] == ["imports", "models", "first run, beyond a later one"]


def test_a_whole_run_takes_turns_with_the_bare_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--fields", "1", "--rounds", "1", "--size", "240", "320", "--engines", "torch")
    report = figures(capsys, monkeypatch, whole_run, *asked)
    ((row,),) = report["tables"].values()
    assert 0 < row["bare"] < row["whole"]
    of_bare, alone, beyond = (claim["value"] for claim in report["claims"])
    assert of_bare == pytest.approx(row["bare"] / row["detect"])
    assert alone == pytest.approx(row["bare"] / row["alone"])
    assert beyond == pytest.approx(row["whole"] / row["bare"] - 1)


def test_memory_compares_a_short_slide_with_a_long_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = figures(capsys, monkeypatch, memory, "--fields", "1", "3", "--size", "240", "320")
    (rows,) = report["tables"].values()
    assert [row["fields"] for row in rows] == [1, 3]
    assert all(row["peak MB"] >= row["idle MB"] > 0 for row in rows)
    assert report["claims"][0]["value"] == pytest.approx(rows[1]["peak MB"] / rows[0]["peak MB"])


@pytest.mark.slow
@pytest.mark.dask
def test_start_up_tells_a_run_from_its_models(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    options = ("--fields", "1", "--rounds", "1", "--workers", "1", "--size", "480", "640")
    report = figures(capsys, monkeypatch, start_up, *options)
    (run,), without = report["tables"].values()
    assert run["wall s"] == pytest.approx(run["models s"] + run["beyond s"])
    assert 0 < run["models s"] < run["CPU-s"]
    assert [row["command"] for row in without] == ["nothing to do", "show"]
    assert all(0 < row["CPU-s"] < run["CPU-s"] for row in without)
    assert [claim["at_most"] for claim in report["claims"]] == [3.0, 1.5, 12.0]


def test_a_report_says_which_bars_are_met(capsys: pytest.CaptureFixture[str]) -> None:
    claims = [
        common.Claim("quick", 0.5, "s", at_most=1.0),
        common.Claim("slow", 2.0, "s", at_most=1.0),
        common.Claim("sure", 0.95, at_least=0.9),
        common.Claim("told", 3.0),
    ]
    common.show(common.Report("Bars", claims, {"Rows": [{"a": 1, "b": 0.25}]}), as_json=False)
    printed = capsys.readouterr().out.splitlines()
    assert "| quick | 0.5 s | ≤ 1 | met |" in printed
    assert "| slow | 2 s | ≤ 1 | missed |" in printed
    assert "| sure | 0.95 | ≥ 0.9 | met |" in printed
    assert "| told | 3 |  |  |" in printed
    assert "| 1 | 0.25 |" in printed


def test_attack_tells_how_each_trial_ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    report = figures(capsys, monkeypatch, attack, "--trials", "16")
    trials, *ends = (claim["value"] for claim in report["claims"])
    assert trials == sum(ends) == 16
    rows = report["tables"]["Ends"]
    assert {row["target"].partition(":")[0] for row in rows} == {"field", "folder", "tree", "OUT"}
    assert all(row["true"] + row["named"] > 0 for row in rows if row["attack"] in ("no picture", "two pages", "lost"))


def test_attack_sees_what_differs_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def erased(content: bytearray, rng: np.random.Generator) -> bytes:
        with Image.open(BytesIO(content)) as picture:
            sink = BytesIO()
            Image.new("RGB", picture.size, "white").save(sink, "PNG")
        return sink.getvalue()

    monkeypatch.setitem(attack.ATTACKS, "field", (erased,))
    monkeypatch.setitem(attack.CHOICES, "field", (erased,))
    (trial,) = attack.trials(attack.Attack(only=0))
    assert (trial.verdict, trial.attack) == ("silent", "erased")
    assert "0 cells, truly" in trial.reason


def test_limits_are_held_against_laboratories_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kinds = ("neutrophil", "lymphocyte", "monocyte")
    half = (0.5, 0.5, 0.5)
    net = {"backbone": "test_efficientnet"}
    card = ModelCard("k", "1", "classifier", "crop_classifier", net, kinds, 0.2, 32, half, half, "", threshold=0.5)
    registry.save(tmp_path / "kinds", builders.build(card), card)
    # A third of the lymphocytes are taken for monocytes, in every laboratory.
    chances = np.array([[0.9, 0.1, 0.0]] * 30 + [[0.0, 0.8, 0.2]] * 20 + [[0.0, 0.3, 0.7]] * 40, np.float16)
    true = ("neutrophil",) * 30 + ("lymphocyte",) * 30 + ("monocyte",) * 30
    places = tuple(place for place in "abcd" for _ in true)
    keep_reference_cells(tmp_path / "kinds", ReferenceCells(np.tile(chances, (4, 1)), true * 4, places))
    report = figures(capsys, monkeypatch, limits, "--classifier", str(tmp_path / "kinds"), "--slides", "12")
    rows = {row["kind"]: row for row in report["tables"]["All laboratories"]}
    assert [rows[kind]["slides"] for kind in ("neutrophil", "lymphocyte", "monocyte", "basophil")] == [12, 12, 12, 0]
    assert rows["lymphocyte"]["plain"] < 0.5 < rows["lymphocyte"]["corrected"]
    assert rows["lymphocyte"]["corrected width"] > rows["lymphocyte"]["plain width"]
    assert len(report["tables"]["Each laboratory left out"]) == 12


def test_a_promise_names_what_every_other_laboratory_has_right() -> None:
    """Neutrophils are right from a score of 0.6 on, lymphocytes everywhere but in one laboratory."""
    kinds = ("neutrophil", "lymphocyte", "monocyte")
    sure, likely, unsure = [[0.9, 0.1, 0.0]] * 20, [[0.62, 0.38, 0.0]] * 20, [[0.52, 0.48, 0.0]] * 20
    given, true = np.array([*sure, *likely, *unsure, *[[0.0, 0.9, 0.1]] * 20]), ["neutrophil"] * 40 + ["monocyte"] * 20
    every = (true + ["lymphocyte"] * 20) * 2 + true + ["monocyte"] * 20
    places = tuple(place for place in "abc" for _ in given)
    cells = ReferenceCells(np.tile(given, (3, 1)).astype(np.float16), tuple(every), places)
    blood = load_taxonomy("blood")
    assert promise.promised(cells, kinds, blood) == {"neutrophil": 0.55}
    a_and_b = cells.take(np.array(places) != "c")
    assert promise.promised(a_and_b, kinds, blood) == {"neutrophil": 0.55, "lymphocyte": 0.5}
    assert promise.promised(cells.take(np.array(places) == "a"), kinds, blood) == {}  # nothing tells of another
    row = promise.figures(a_and_b, a_and_b, kinds, blood, {"neutrophil": 0.5})
    assert (row["named"], row["right"]) == (0.75, pytest.approx(2 / 3))
    assert row["calibration error"] < row["calibration error of probabilities"]


def test_the_bundled_classifier_keeps_its_promise(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = figures(capsys, monkeypatch, promise)
    assert all(claim["met"] for claim in report["claims"][:2])
    said = ", ".join(
        f"{name} = {score}"
        for name, score in sorted(registry.read_card("bundled:classifier").stranger_threshold.items())
    )
    assert report["remarks"] == [f"stranger_threshold of all laboratories: {said}"]


def test_limits_of_a_taught_classifier_are_held_against_its_laboratory() -> None:
    """Three kinds in corners of two features; the classifier that nobody taught calls many lymphocytes monocytes."""
    kinds, blood = ("neutrophil", "lymphocyte", "monocyte"), load_taxonomy("blood")
    rng, true = np.random.default_rng(0), [kind for kind in ("neutrophil", "lymphocyte", "monocyte") for _ in range(60)]
    centres = np.repeat([[4.0, 0.0], [0.0, 1.5], [0.0, -1.5]], 60, 0)
    features = (centres + rng.normal(0, 0.8, centres.shape))[:, None]
    cells = NamedCells(features, np.array([[k == own for own in kinds] for k in true]), tuple(true))
    prior = LastLayer(np.array([[2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), np.array([-4.0, -1.0, 1.0]))
    lab = Bench(cells, prior, np.eye(3, dtype=np.float32))
    half = (0.5, 0.5, 0.5)
    card = ModelCard("k", "1", "classifier", "crop_classifier", {}, kinds, 0.2, 32, half, half, "", threshold=0.4)
    lessons = [taught_limits.teach(lab, true, card, blood, per_kind=12, seed=seed) for seed in range(10)]
    before = taught_limits.probabilities(lab, prior).argmax(1)[60:120]
    assert (before == 2).mean() > 0.2
    assert np.mean([(taught.names["lymphocyte"] == "monocyte").mean() for taught in lessons]) < 0.1
    taught = lessons[1]
    assert taught.own.weights is not None
    assert taught.own.weights.sum() == pytest.approx(taught_limits.NIGHT, rel=0.05)
    assert len(set(taught.own.weights.tolist())) > 1


def test_rivals_on_one_out_leave_the_count_of_one_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = figures(capsys, monkeypatch, rivals, "--trials", "3")
    values = {claim["what"]: claim["value"] for claim in report["claims"]}
    assert values["trials"] == 3
    assert values["counts that differ from the undisturbed one"] == 0
    assert values["runs that ended otherwise than they may"] == 0


def test_readers_beside_a_recount_read_whole_counts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = figures(capsys, monkeypatch, readers, "--reads", "20")
    assert report["tables"]["Ends"] == [{"end": "whole", "reads": 20}]
    assert report["claims"][1]["value"] > 0


def test_simulated_fields_are_counted_and_nobody_opens_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = scale_out.Simulated(1, 3, 1, read_seconds=0.0, model_seconds=0.0, boxes=40)
    monkeypatch.setenv(scale_out.SIMULATED, json.dumps(asdict(site)))
    for name in ("ingest_chunk", "detect_chunk"):
        monkeypatch.setattr(f"wbc.counting.slide.{name}", getattr(scale_out, name))
    scale_out.link_slides(tmp_path / "slides", 1, 3)
    (slide,) = discover(UPath(tmp_path / "slides"))
    job = Job(UPath(tmp_path / "out"), common.stub_detector(tmp_path / "stub"), None, load_taxonomy("blood"))
    with ThreadPoolExecutor(1) as executor:
        outcome = count_slide(replace(slide, um_per_px=0.1), job, executor)
    assert (outcome.status, outcome.n_fields, outcome.failed_fields) == ("counted", 3, ())
    assert 0 < outcome.n_cells < 120


def test_no_file_of_a_simulated_site_has_more_links_than_its_slide_has_fields(tmp_path: Path) -> None:
    scale_out.link_slides(tmp_path / "slides", 3, 4)
    assert {path.stat().st_nlink for path in (tmp_path / "slides").glob("*/*.jpg")} == {4}


def test_white_cells_alone_are_held_against_all() -> None:
    model = registry.load(registry.resolve("bundled:detector", "detector")[0], registry.resolve_device("cpu"))
    smear = SmearSettings(480, 640, 0.2, white_cells_per_field=(3, 3))
    field = render_field(smear, np.random.default_rng(3))[0]
    row, differences = white_cells.compare(white_cells.Series(white_cells.TYPICAL, [field], 0.2), model, rounds=1)
    assert (row["white cells of all"], row["found again"], row["more"], differences) == (3, 3, 0, [])
    assert white_cells.report_of([row], differences, "torch").claims[0].met


def test_a_part_leaves_out_what_would_end_too_late(tmp_path: Path) -> None:
    subject = gpu_subject.subject_of(tmp_path, "cpu", gpu_fields.Rendering([], []))
    assert list(subject.in_time(range(3))) == [0, 1, 2]
    subject.ends = time.monotonic() - 1
    assert list(subject.in_time(range(3))) == [0]
    assert subject.left_out == 2


def test_parts_run_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(subject: gpu_subject.Subject) -> Iterator[dict[str, object]]:
        yield from ({"step": step, "until": subject.ends - gpu.BEGAN} for step in subject.in_time("ab"))

    monkeypatch.setattr(gpu, "_parts", lambda: dict.fromkeys(gpu.NEEDS, part))
    monkeypatch.setattr(gpu, "BEGAN", time.monotonic())
    monkeypatch.setattr(torch, "set_num_threads", lambda _n: None)  # it would outlast this test
    chosen = {"data": tmp_path, "device": "cpu", "seconds": 60.0, "parts": ["busy", "compiled", "copies"]}
    gpu._run(Namespace(**chosen), gpu_fields.Rendering([], []))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [(row["part"], row["step"], row["until"]) for row in rows if "step" in row] == [
        *(("busy", "a", 40.0), ("busy", "b", 40.0)),
        *(("compiled", "a", 58.0), ("compiled", "b", 58.0)),
        *(("copies", "a", 60.0), ("copies", "b", 60.0)),
    ]


def test_what_a_gpu_is_asked_can_be_tried_out_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Future[bytes]()
    small.set_result(gpu_fields._field((160, 200), 0))
    subject = gpu_subject.subject_of(tmp_path, "cpu", gpu_fields.Rendering([small], [small]))
    monkeypatch.setattr(gpu_busy, "N_ON_CPU", 2)
    stages = list(gpu_stages.rows(subject))
    assert {"decode", "backbone", "RoIAlign", "merge"} <= {row["stage"] for row in stages if "stage" in row}
    assert {"tiles as shipped", "scale there"} <= {row.get("way") for row in gpu_copies.copies(subject)}
    ways = {row["way"]: row["cells"] for row in gpu_variants.rows(subject) if "way" in row}
    assert ways["as shipped, RoIAlign by rows"] == ways["as shipped"] > 0
    assert [row["failed"] for row in gpu_busy.rows(subject) if "producers" in row] == [0]
