"""The `wbc` command as a user meets it: what it prints, where, and with which exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
from answers import refused
from fixture_types import Wbc
from PIL import Image

from wbc.cli import terminal
from wbc.cli.sources import option, plain_type
from wbc.counting.parameters import CountParameters
from wbc.counting.slide import SlideOutcome
from wbc.models import builders, registry
from wbc.models.cards import ModelCard


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("wbc.cli.main", ("torch", "prefect", "pandas", "numpy", "rich")),
        ("wbc.counting.report", ("torch", "prefect", "pandas")),
        ("wbc.counting.standing", ("torch", "scipy", "zarr", "prefect", "pandas")),
        ("wbc.counting.slide", ("torch", "pandas")),
        ("flows.count_slides", ("torch", "distributed", "pandas", "prefect.server")),
    ],
)
def test_what_takes_long_to_import_waits_until_it_is_needed(module: str, spared: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([m for m in {spared} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_slides_count_is_read_without_pandas(count: Wbc, slides: Path, tmp_path: Path) -> None:
    count(slides, tmp_path / "out")
    program = (
        "import sys, upath, wbc.counting.report\n"
        f"wbc.counting.report.read_report(upath.UPath({str(tmp_path / 'out')!r}), 's1')\n"
        "print('pandas' in sys.modules)"
    )
    read = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert read.stdout.strip() == "False"


def test_help_names_every_verb_and_option(wbc: Wbc) -> None:
    told = wbc("--help").stdout
    assert all(verb in told for verb in ("count", "show", "synth", "train"))
    options = wbc("count", "--help").stdout
    words = ("out", "detector", "classifier", "taxonomy", "min-score", "um-per-px", "device", "workers", "scheduler")
    for word in (*words, "settings"):
        assert f"--{word} " in options
    for flag in ("--force", "--verify", "--keep-pixels", "--annotate", "--json"):
        assert flag in options


def test_slides_are_counted_and_shown(count: Wbc, wbc: Wbc, slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = count(slides, out)
    assert done.exit_code == 0, done.output
    rbc = pd.read_parquet(out / "differentials").query("cell_type == 'rbc'").set_index("slide_id")["count"]
    assert rbc.to_dict() == {"s1": 11, "s2": 5}
    for slide_id, n in rbc.items():
        block = done.stdout[done.stdout.index(f"{slide_id}  ") :]
        assert next(line.split() for line in block.splitlines() if line.strip().startswith("rbc"))[1] == str(n)
    assert sorted(line.split()[1] for line in done.stderr.splitlines() if ": counted: " in line) == ["s1:", "s2:"]

    assert wbc("show", out).stdout == done.stdout
    one = wbc("show", out, "s2").stdout
    assert "s2" in one
    assert "s1" not in one

    again = count(slides, out)
    assert again.exit_code == 0
    assert "s1: unchanged" in again.stderr
    assert again.stdout == done.stdout


def test_json_is_all_there_is_on_stdout(count: Wbc, wbc: Wbc, slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = json.loads(count(slides, out, "--json").stdout)
    assert [(s["slide_id"], s["status"], s["n_cells"]) for s in told["slides"]] == [
        ("s1", "counted", 11),
        ("s2", "counted", 5),
    ]
    shown = json.loads(wbc("show", out, "--json").stdout)
    assert [s["differential"] for s in shown["slides"]] == [s["differential"] for s in told["slides"]]


def test_what_failed_is_named_and_the_rest_is_counted(count: Wbc, slides: Path, tmp_path: Path) -> None:
    (slides / "s1" / "f000.png").write_text("no picture")
    (slides / "empty").mkdir()
    done = count(slides, tmp_path / "out")
    assert done.exit_code == 3
    assert "s1: f000.png: is no JPEG, PNG, TIFF or BMP image" in done.stderr.splitlines()
    assert "empty: not counted: the folder holds no image" in done.stderr.splitlines()
    rbc = pd.read_parquet(tmp_path / "out" / "differentials").query("cell_type == 'rbc'").set_index("slide_id")["count"]
    assert rbc.to_dict() == {"empty": 0, "s1": 6, "s2": 5}
    assert count(slides, tmp_path / "out").exit_code == 3, "what failed is told again as long as it is so"


def test_a_slide_that_failed_as_a_whole_is_named(
    wbc: Wbc, count: Wbc, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert count(slides, tmp_path / "out").exit_code == 0
    import flows.count_slides as flow

    outcomes = (
        SlideOutcome("s1", "failed", 2, 0, (), 0.1, "No space left on device"),
        SlideOutcome("s2", "unchanged", 1, 5, (), 0.1),
    )
    monkeypatch.setattr(flow, "count_slides", lambda **_: flow.CountReport(outcomes))
    done = wbc("count", slides, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 3
    assert "s1: not counted: No space left on device" in done.stderr.splitlines()
    told = json.loads(done.stdout)["slides"]
    assert told[0] == {"slide_id": "s1", "status": "failed", "reason": "No space left on device"}
    assert told[1]["n_cells"] == 5


SPECIAL = {"taxonomy": "wang2021", "device": "cuda:1", "annotate": "all", "cells": "white", "engine": "torch"}
SOME = {str: "some", float: 0.4, int: 3, bool: True}


def other_words(name: str) -> tuple[list[str], object]:
    """An option that says something else than the default, and its value."""
    value = SPECIAL.get(name) or SOME[plain_type(name)]
    return [option(name), *([] if value is True else [str(value)])], value


def test_every_option_reaches_the_flow(wbc: Wbc, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.count_slides as flow

    told: dict[str, object] = {}

    def fake(**parameters: object) -> flow.CountReport:
        told.update(parameters)
        return flow.CountReport(())

    monkeypatch.setattr(flow, "count_slides", fake)
    monkeypatch.setattr("wbc.cli.count._standing", lambda *_: None)  # there are no such models
    monkeypatch.setattr("flows.private_server.private_server", lambda meanwhile: nullcontext(meanwhile()))
    expected: dict[str, object] = {"slides": str(slides), "out": str(tmp_path / "out")}
    words = ["count", str(slides), "--out", str(tmp_path / "out")]
    for field in fields(CountParameters)[2:]:
        more, expected[field.name] = other_words(field.name)
        words += more
    assert wbc(*words).exit_code == 0
    assert told == expected


@pytest.mark.parametrize(
    ("words", "drawn"),
    [
        (["SLIDES", "--annotate"], "white"),
        (["--annotate", "SLIDES"], "white"),
        (["SLIDES", "--annotate", "--force"], "white"),
        (["SLIDES", "--annotate", "all"], "all"),
        (["SLIDES", "--annotate=all"], "all"),
        (["SLIDES"], "none"),
    ],
)
def test_annotate_alone_means_the_white_cells(wbc: Wbc, words: list[str], drawn: str) -> None:
    shown = wbc("config", "show", *words, "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert (told["slides"]["value"], told["annotate"]["value"]) == ("SLIDES", drawn)


def test_annotated_fields_lie_in_out(count: Wbc, slides: Path, tmp_path: Path) -> None:
    assert count(slides, tmp_path / "out", "--annotate").exit_code == 0
    drawn = sorted((tmp_path / "out" / "annotated").rglob("*.jpg"))
    assert [p.parent.name for p in drawn] == ["s1", "s1", "s2"]
    with Image.open(drawn[0]) as picture:
        assert picture.size == (320, 240)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--min-score", "1.5", "--min-score: min_score is 1.5: input should be less than or equal to 1"),
        ("--um-per-px", "0", "um_per_px is 0.0: input should be greater than or equal to 0.02"),
        ("--um-per-px", "nan", "um_per_px is nan: input should be a finite number"),
        ("--workers", "0", "--workers: workers is 0: input should be greater than or equal to 1"),
        ("--device", "tpu", "'tpu' is not auto, cpu"),
        ("--taxonomy", "no such", "taxonomy no such: no such file"),
        ("--no-such-option", "1", "No such option"),
    ],
)
def test_wrong_usage_is_told_at_once(
    wbc: Wbc, slides: Path, tmp_path: Path, option: str, value: str, expected: str
) -> None:
    result = wbc("count", slides, "--out", tmp_path / "out", option, value)
    assert result.exit_code == 2
    told = " ".join(result.stderr.replace("│", " ").split())
    assert expected in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_of_slides_is_wrong_usage(wbc: Wbc, tmp_path: Path) -> None:
    assert f"no such folder of slides: {tmp_path}/none" in refused(wbc("count", f"{tmp_path}/none", "--out", tmp_path))


def test_a_model_that_is_not_there_is_wrong_usage(count: Wbc, slides: Path, tmp_path: Path) -> None:
    for model in ("--detector", "--classifier"):
        told = refused(count(slides, tmp_path / "out", model, tmp_path / "none"))
        assert f"no model '{tmp_path}/none'" in told


def test_a_taxonomy_that_contradicts_the_model_is_wrong_usage(
    count: Wbc, slides: Path, tmp_path: Path, dark_card: ModelCard
) -> None:
    card = replace(dark_card, classes=("rbc", "yeast"))
    registry.save(tmp_path / "model", builders.build(card), card)
    assert "yeast" in refused(count(slides, tmp_path / "out", "--detector", tmp_path / "model"))


def test_an_out_that_cannot_be_written_is_wrong_usage(count: Wbc, slides: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = refused(count(slides, tmp_path / "file" / "out"))
    assert "results cannot be written here" in told
    assert str(tmp_path / "file" / "out") in told


@pytest.mark.parametrize("place", [".", "out", "s1/annotated"])
def test_an_out_among_the_slides_is_wrong_usage(
    wbc: Wbc, scheduler: str, dark_folder: Path, slides: Path, place: str
) -> None:
    before = sorted(slides.rglob("*"))
    told = refused(wbc("count", slides, "--out", slides / place))
    assert f"OUT '{slides / place}' lies in SLIDES '{slides}'" in told
    assert sorted(slides.rglob("*")) == before

    from flows.count_slides import count_slides

    with pytest.raises(ValueError, match="lies in SLIDES"):
        count_slides(
            str(slides), str(slides / place), str(dark_folder), classifier=None, device="cpu", scheduler=scheduler
        )
    assert sorted(slides.rglob("*")) == before


def test_a_scheduler_that_is_none_is_wrong_usage(count: Wbc, slides: Path, tmp_path: Path) -> None:
    assert "nonsense" in refused(count(slides, tmp_path / "out", "--scheduler", "nonsense://here"))


def test_settings_that_are_none_are_wrong_usage(count: Wbc, slides: Path, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text("wokers = 3\n")
    told = refused(count(slides, tmp_path / "out", "--settings", tmp_path / "cluster.toml"))
    assert "cluster.toml" in told
    assert "wokers" in told


def test_ctrl_c_ends_with_130(wbc: Wbc, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.count_slides as flow

    def interrupted(**_: object) -> flow.CountReport:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(flow, "count_slides", interrupted)
    monkeypatch.setattr(terminal, "STOP_SECONDS", 1e6)
    done = wbc("count", slides, "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert "run the same command again" in done.stderr
