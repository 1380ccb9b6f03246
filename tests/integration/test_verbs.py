"""The verbs beside `wbc count`, as a user meets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from answers import refused
from fixture_types import CommitSlide, Wbc
from upath import UPath


@pytest.mark.parametrize(("arguments", "expected"), [((), "no slide was counted here"), (("s1",), "no slide was")])
def test_show_without_a_count_is_wrong_usage(
    wbc: Wbc, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(wbc("show", tmp_path, *arguments))


def test_show_of_an_unknown_slide_names_those_that_are(count: Wbc, wbc: Wbc, slides: Path, tmp_path: Path) -> None:
    count(slides, tmp_path / "out")
    told = refused(wbc("show", tmp_path / "out", "s3"))
    assert "'s3'" in told
    assert told.endswith("s1, s2")


@pytest.mark.parametrize(
    ("n", "expected"), [(9, "s08"), (10, "s08, s09"), (11, "s08, s09 and 1 more"), (40, "and 30 more")]
)
def test_show_of_an_unknown_slide_says_how_many_more_there_are(
    wbc: Wbc, commit_slide: CommitSlide, tmp_path: Path, n: int, expected: str
) -> None:
    for i in range(n):
        commit_slide(UPath(tmp_path / "out"), f"s{i:02d}", ["rbc"])
    assert refused(wbc("show", tmp_path / "out", "s99")).endswith(expected)


def test_the_shell_can_complete_commands(tmp_path: Path) -> None:
    environment = os.environ | {"_WBC_COMPLETE": "complete_bash", "COMP_WORDS": "wbc s", "COMP_CWORD": "1"}
    program = "from wbc.cli.main import app; app(prog_name='wbc')"
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["show", "synth"]


def test_synth_renders_the_same_slides_for_a_seed(wbc: Wbc, tmp_path: Path) -> None:
    done = wbc("synth", tmp_path / "a", "--slides", 1, "--fields", 1, "--seed", 5)
    assert done.exit_code == 0, done.output
    truth = json.loads((tmp_path / "a" / "truth_coco.json").read_text())
    assert [(i["file_name"], i["width"], i["height"]) for i in truth["images"]] == [
        ("slide-01/field-01.jpg", 2560, 1920)
    ]
    assert (tmp_path / "a" / "slide-01" / "field-01.jpg").exists()
    assert wbc("synth", tmp_path / "b", "--slides", 0).exit_code == 2


def test_training_says_what_is_wrong_with_a_config(wbc: Wbc, tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('classes = ["rbc"]\nclases = 1\n')
    for verb in ("detector", "classifier"):
        told = refused(wbc("train", verb, config, "--data", tmp_path, "--out", tmp_path / "model"))
        assert "mine.toml" in told
        assert "clases" in told
    assert wbc("train", "detector", tmp_path / "none", "--data", tmp_path, "--out", tmp_path).exit_code == 2


def test_config_show_says_what_holds_and_from_where(wbc: Wbc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "count.toml"
    file.write_text('out = "results"\nmin_score = 0.5\n')
    monkeypatch.setenv("WBC_MIN_SCORE", "0.6")
    monkeypatch.setenv("WBC_CONFIG", str(file))
    rows = [line.split() for line in wbc("config", "show", "--force").stdout.splitlines()]
    assert ["out", "results", str(file)] in rows
    assert ["min_score", "0.6", "WBC_MIN_SCORE"] in rows
    assert ["force", "yes", "--force"] in rows
    assert ["um_per_px", "none", "default"] in rows
    assert ["slides", "not", "given"] in rows

    told = json.loads(wbc("config", "show", "--min-score", "0.9", "--json").stdout)
    assert told["min_score"] == {"value": 0.9, "from": "--min-score"}
    assert told["slides"] == {"value": None, "from": None}
    monkeypatch.setenv("WBC_MIN_SCORE", "6")
    assert "WBC_MIN_SCORE: min_score is 6" in refused(wbc("config", "show"))


def test_a_count_takes_its_options_from_a_file(wbc: Wbc, tmp_path: Path) -> None:
    file = tmp_path / "count.toml"
    file.write_text('slides = "no such folder"\n')
    assert "out is missing" in refused(wbc("count", "--config", file))
    told = refused(wbc("count", "--config", file, "--out", tmp_path))
    assert "no such folder of slides: no such folder" in told
    assert "no such file" in refused(wbc("count", "--config", tmp_path / "none.toml"))


def test_version_says_what_wbc_stands_on(wbc: Wbc) -> None:
    told = json.loads(wbc("version", "--json").stdout)
    assert told["wbc"] == wbc("--version").stdout.strip()
    assert told["torch"][0].isdigit()
    assert len(told["code revision"]) == 12


def test_models_tells_what_a_reference_means(wbc: Wbc, dark_folder: Path) -> None:
    bundled = {"bundled:classifier", "bundled:detector", "bundled:wide-detector"}
    assert set(json.loads(wbc("models", "list", "--json").stdout)) == bundled
    told = json.loads(wbc("models", "show", dark_folder, "--json").stdout)
    assert (told["builder"], told["classes"], told["um_per_px"]) == ("dark_regions", ["rbc"], 0.2)
    assert "eosinophil" in wbc("models", "show", "bundled:classifier").stdout
    assert "bundled:detector" in refused(wbc("models", "show", "bundled:none"))


def test_doctor_names_what_is_wrong(
    wbc: Wbc, commit_slide: CommitSlide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = UPath(tmp_path / "out")
    for slide_id in ("s1", "s2"):
        commit_slide(out, slide_id, ["rbc", "monocyte"])
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    sound = wbc("doctor", out)
    assert sound.exit_code == 0, sound.output
    assert "2 slides counted, no problems" in sound.stdout

    (tmp_path / "out" / "cells" / "s1.parquet").write_bytes(b"PAR1")
    (tmp_path / "out" / "slides" / "s2.parquet").unlink()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    ill = wbc("doctor", out, "--json")
    assert ill.exit_code == 3
    wrong = {c["subject"]: c["fact"] for c in json.loads(ill.stdout) if c["state"] == "wrong"}
    assert "cells/s1.parquet" in wrong[f"{out}/slides/s1.parquet"]
    assert "never finished" in wrong[f"{out}/cells/s2.parquet"]
    assert "does not answer" in wrong["Prefect server"]
    assert "no such folder of results" in refused(wbc("doctor", tmp_path / "none"))
