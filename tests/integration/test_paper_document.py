"""The papers' document: what is measured once is not measured again, and each row tells what it is worth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import paper_document, papers
from benchmarks.paper_document import Measured, figures_row, filled, row, verdict
from benchmarks.paper_record import RECORD, Record
from benchmarks.paper_variants import VARIANTS, Variant
from benchmarks.papers import Trials, chosen_of, measure_costs
from wbc.models import builders, registry

BY_NAME = {v.name: v for v in VARIANTS}
KINDS = ["promyelocyte", "myelocyte", "metamyelocyte", "band_neutrophil", "segmented_neutrophil", "basophil"]


def measured(right: int) -> Measured:
    """A run with so many of ten cells of each kind right, and the others called basophils."""
    matrix = np.diag([right] * len(KINDS))
    matrix[:, -1] += 10 - right
    return Measured.of(figures_row(BY_NAME["plain"], 0, kept({"pbc_cells test": matrix, "pbc_cells val": matrix})))


def kept(sets: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a run of `plain` keeps."""
    conditions = {"steps": 200, "batch": 66, "input_px": 96, "imagenet": True, "device": "CPU"}
    return {"classes": KINDS, "sets": sets, **conditions, **more}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_row_has_a_plan_whose_model_can_be_built(variant: Variant) -> None:
    assert variant.against in {"", *BY_NAME}
    plan = variant.plan(3)
    assert plan.loop.seed == 3
    if variant.builder not in ("wbcnet", "cell3net"):  # the largest: their own tests build them
        builders.build(plan.card(papers.CONFIGS / f"{variant.config}.toml"))


def test_an_ablation_changes_what_it_says_and_nothing_else() -> None:
    plain, everything = BY_NAME["plain"].plan(0), BY_NAME["gmmce"].plan(0)
    assert (everything.sampler, everything.loss.name, everything.crop.hue) == ("balanced", "gmmce", (125, 155))
    undone = replace(everything, sampler="root", loss=plain.loss, crop=plain.crop, builder="plain", model=plain.model)
    assert undone == plain


def test_a_whole_seed_comes_before_the_next_and_what_is_there_is_not_run(tmp_path: Path) -> None:
    chosen = chosen_of(["plain", "hue"])
    record = Record(tmp_path / "measured")
    trials = Trials(tmp_path, tmp_path, [0, 1], "cpu", record)
    record.classifiers.add([figures_row(chosen[1], 0, kept({}))])
    assert [(v.name, seed) for v, seed in trials.missing(chosen)] == [("plain", 0), ("plain", 1), ("hue", 1)]
    with pytest.raises(ValueError, match="no variant is called nonsense: they are varra_model_2"):
        chosen_of(["nonsense"])


def test_a_training_that_has_ended_is_only_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(papers, "train_as_planned", train)
    monkeypatch.setattr(papers, "read_crops", lambda spec, data: spec.set)
    monkeypatch.setattr(papers, "classifier_confusion", lambda crops, reference, device: np.eye(11, dtype=int))
    trials = Trials(tmp_path, tmp_path, [0], "cpu", Record(tmp_path / "measured"))
    out = trials.place(BY_NAME["plain"], 0)
    out.mkdir()
    (out / registry.CARD).touch()
    trials.run(BY_NAME["plain"], 0)
    assert set(json.loads((out / papers.FIGURES).read_text())["sets"]) == {"pbc_cells val", "pbc_cells test"}
    (line,) = trials.record.classifiers.rows()
    assert (line["variant"], line["seed"], line["test"], line["val"], line["neighbours"]) == ("plain", 0, 100, 100, 100)
    assert (line["conditions"], line["device"]) == ("96 px, 200 × 66, from ImageNet", "CPU")
    assert "other_stain" not in line
    assert list(trials.missing([BY_NAME["plain"]])) == []


def test_a_row_tells_mean_spread_and_the_papers_figure(tmp_path: Path) -> None:
    runs = {v.name: [] for v in VARIANTS} | {"plain": [measured(7), measured(8)], "hue": [measured(9), measured(10)]}
    shown = row(BY_NAME["hue"], runs, Record(tmp_path))
    assert shown["test %"] == "95.8 (91.7 to 100.0)"
    assert shown["neighbours %"] == "95.0 (90.0 to 100.0)"
    assert shown["paper %"] == "73.02"
    assert shown["against"] == "+16.7 to plain lite0 (paper +0.4: agrees); beyond the spread"
    assert "other stain %" not in shown


def test_one_seed_has_no_spread_and_a_row_to_compare_with_may_lack() -> None:
    runs = {"plain": [measured(9)], "hue": [measured(8)]}
    assert verdict(BY_NAME["hue"], runs).endswith("does not agree); one seed, no spread")
    assert verdict(BY_NAME["hue"], {**runs, "plain": []}) == ""


def test_tables_are_filled_between_their_marks_and_prose_stays() -> None:
    text = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n<!-- table: y -->\n<!-- end -->"
    assert filled(text, "x", "new") == text.replace("old", "\nnew\n")
    with pytest.raises(ValueError, match="no marks for the table 'z'"):
        filled(text, "z", "new")


def test_the_document_has_a_place_for_every_table_and_is_written_without_runs(tmp_path: Path) -> None:
    document = tmp_path / "papers.md"
    document.write_text(papers.DOCUMENT.read_text())
    paper_document.write_document(document, Record(tmp_path), tmp_path, tmp_path, None)
    assert document.read_text().count("Nothing measured yet.") == 9


def test_the_documents_tables_are_those_of_the_record(tmp_path: Path) -> None:
    document, text = tmp_path / "papers.md", papers.DOCUMENT.read_text()
    document.write_text(text)
    paper_document.write_document(document, Record(RECORD), tmp_path, tmp_path, None)
    tables = [page.split("<!-- table: pictures -->")[0] for page in (document.read_text(), text)]
    assert tables[0] == tables[1]
    assert "Nothing measured yet." not in tables[0]


def test_pictures_are_drawn_of_the_runs_that_are_there(tmp_path: Path) -> None:
    out = tmp_path / "plain-seed-0"
    out.mkdir()
    (out / papers.FIGURES).write_text(json.dumps(kept({"pbc_cells test": np.eye(len(KINDS), dtype=int).tolist()})))
    (out / "curves.csv").write_text("what,curve,step,value\nloss,a,1,2.0\nloss,b,1,1.0\nloss,a,2,1.0\nloss,b,2,0.5\n")
    document = tmp_path / "papers.md"
    document.write_text(papers.DOCUMENT.read_text())
    paper_document.write_document(document, Record(tmp_path), tmp_path, tmp_path, None)
    assert {p.name for p in (tmp_path / "pictures/papers").iterdir()} == {"plain.png", "losses.png"}


def test_detectors_are_followed_in_their_longest_trainings(tmp_path: Path) -> None:
    record, fpn, proposed = Record(tmp_path), "wang2021_lite0_fpn", "wang2021_lite0_proposed"
    seen = [(fpn, 350, 0, 250, 0.1), (fpn, 700, 0, 250, 0.2), (fpn, 700, 1, 250, 0.3), (proposed, 700, 0, 500, 0.4)]
    keys = ("system", "steps", "seed", "step", "value")
    record.watched.add([{"figure": "slide-04 AP", **dict(zip(keys, line, strict=True))} for line in seen])
    record.watched.add([{"figure": "slide-04 AP50", **dict(zip(keys, seen[0], strict=True))}])
    early, late = "slide-04 AP, 250 steps", "slide-04 AP, 500 steps"
    assert paper_document.learning_table(record) == [
        {"system": fpn, early: "0.200, 0.300", late: ""},
        {"system": proposed, early: "", late: "0.400"},
    ]


def test_a_line_of_the_record_takes_the_place_of_its_like(tmp_path: Path) -> None:
    costs = Record(tmp_path / "new").costs
    assert costs.rows() == []
    costs.add([{"system": "b", "GFLOPs": 2.5}, {"system": "a", "GFLOPs": 1.0, "threads": 1}])
    costs.add([{"system": "b", "GFLOPs": 3.5}])
    assert costs.rows() == [{"system": "a", "GFLOPs": 1.0, "threads": 1}, {"system": "b", "GFLOPs": 3.5}]


def test_costs_are_those_of_the_model() -> None:
    costs = measure_costs(BY_NAME["varra_model_1"], rounds=1)
    assert costs["M parameters"] == pytest.approx(2.32, abs=0.02)
    assert costs["GFLOPs"] > 0.003
    assert costs["peak MB"] > 50
