"""What a user reads where slides have moved, gone, or been passed over."""

import json
from pathlib import Path

import pandas as pd
import pytest
from answers import refused
from fixture_types import Wbc
from painted import make_slide
from upath import UPath

from wbc.storage.layout import TABLES, Layout


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_two_batches_with_equal_names_never_replace_each_other(count: Wbc, tmp_path: Path) -> None:
    for batch, cells in (("batchA", 5), ("batchB", 9)):
        make_slide(UPath(tmp_path / batch / "slide-01"), 1, cells)
    out = tmp_path / "out"
    assert count(tmp_path / "batchA", out).exit_code == 0
    told = refused(count(tmp_path / "batchB", out))
    assert f"'slide-01' was '{tmp_path}/batchA/slide-01' and is '{tmp_path}/batchB/slide-01' now" in told
    assert "--rename" in told
    assert "another OUT" in told
    assert pd.read_parquet(out / "slides")["n_cells"].tolist() == [5]

    renamed = count(tmp_path / "batchB", out, "--rename")
    assert renamed.exit_code == 0
    assert f"warning: renamed: 'slide-01' was '{tmp_path}/batchA/slide-01'" in renamed.stderr
    assert pd.read_parquet(out / "slides")["source"].tolist() == [f"{tmp_path}/batchB/slide-01"]
    assert len(list((out / "history").rglob("slides/slide-01.parquet"))) == 1


@pytest.mark.parametrize("names", [(), ("notes.txt", ".hidden.jpg", "a.webp")])
def test_an_empty_folder_of_slides_is_wrong_usage(count: Wbc, wbc: Wbc, tmp_path: Path, names: tuple[str, ...]) -> None:
    slides = tmp_path / "mount"
    slides.mkdir()
    for name in names:
        (slides / name).write_text("")
    told = refused(count(slides, tmp_path / "out"))
    assert f"no picture to count in '{slides}' or below" in told
    assert all(name in told for name in names)
    assert "no slide was counted here" in refused(wbc("show", tmp_path / "out"))


def test_slides_that_have_gone_are_named_until_they_are_pruned(
    count: Wbc, wbc: Wbc, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert "not there any more" not in count(slides, out).stderr
    assert wbc("prune", out).stdout == "every slide is where it was counted: nothing is moved\n"
    remove(slides / "s2")
    counted = count(slides, out)
    line = f"in OUT, but not there any more: s2 ({slides}/s2); `wbc prune` moves their counts to the history"
    assert counted.exit_code == 0
    assert f"warning: {line}" in counted.stderr.splitlines()
    shown = wbc("show", out)
    assert (shown.exit_code, shown.stderr) == (0, f"warning: {line}\n")
    assert "s2  1 of 1 field" in shown.stdout
    assert json.loads(wbc("show", out, "--json").stdout)["gone"] == [{"slide_id": "s2", "source": f"{slides}/s2"}]
    assert wbc("show", out, "s1").stderr == ""

    assert wbc("prune", out).stdout == f"s2 ({slides}/s2): its count is in the history now\n"
    assert [Layout(UPath(out)).slide_ids(name) for name in TABLES] == [["s1"]] * len(TABLES)
    assert len(list((out / "history").rglob("slides/s2.parquet"))) == 1
    assert "not there any more" not in count(slides, out).stderr
    assert wbc("show", out).stderr == ""


def test_prune_takes_the_slides_that_it_is_told(count: Wbc, wbc: Wbc, slides: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no slide was counted here" in refused(wbc("prune", out))
    count(slides, out)
    assert "no count of slide 's3'" in refused(wbc("prune", out, "s3"))
    assert json.loads(wbc("prune", out, "s1", "--json").stdout)["pruned"] == [
        {"slide_id": "s1", "source": f"{slides}/s1"}
    ]
    assert Layout(UPath(out)).slide_ids() == ["s2"]


def test_what_is_passed_over_is_counted_and_named(count: Wbc, slides: Path, tmp_path: Path) -> None:
    for i in range(5):
        (slides / "s1" / f"f{i}.webp").write_text("")
    (slides / "s1" / "notes.txt").write_text("")
    (slides / ".DS_Store").write_text("")
    (slides / "s2" / ".wbc").mkdir()
    (slides / "s2" / "cells").mkdir()
    done = count(slides, tmp_path / "out")
    assert done.exit_code == 0
    *_, results, hidden, other, _, pictures = done.stderr.splitlines()
    assert results == "passed over: 2 folders with results of counts: s2/.wbc/, s2/cells/"
    assert hidden == "passed over: 1 hidden file or folder: .DS_Store"
    assert other == "passed over: 1 file that is no picture by its name: s1/notes.txt"
    kinds = "5 pictures of kinds that are not read"
    assert pictures == f"warning: passed over: {kinds}: s1/f0.webp, s1/f1.webp, s1/f2.webp and 2 more"
    assert pd.read_parquet(tmp_path / "out" / "slides")["n_fields"].tolist() == [2, 1]
    told = json.loads(count(slides, tmp_path / "out", "--json").stdout)["passed_over"]
    assert {"path": "s1/f4.webp", "kind": "unread_picture", "why": ""} in told
    assert len(told) == 9


def test_pictures_that_two_slides_count_are_told(count: Wbc, slides: Path, tmp_path: Path) -> None:
    done = count(slides, tmp_path / "out")
    assert "warning: 1 picture counted in s1 and again in s2" in done.stderr.splitlines()
