"""The comparison of the papers' detectors: what is measured once is not measured again."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import paper_detectors
from benchmarks.paper_detectors import BESIDE_AP, Trials, accuracy_row, configs, measure_costs
from benchmarks.paper_record import Record
from wbc.models import registry

TINY = """
classes = ["rbc", "wbc"]
builder = "{builder}"
um_per_px = 0.2
{model}
[loop]
steps = 7
batch = 2

[[data]]
format = "voc"
images = "a"
annotations = "b"
names = {{}}
"""
SMALL = 'backbone = "test_efficientnet"\npyramid_channels = 8\nhead_width = 16'


def config(folder: Path, builder: str, model: str) -> Path:
    path = folder / "wang2021_lite0_fpn.toml"
    path.write_text(TINY.format(builder=builder, model=model))
    return path


@pytest.mark.parametrize(
    ("builder", "model"),
    [("faster_rcnn", f"[model]\n{SMALL}"), ("attentive_rcnn", f"[model.detector]\n{SMALL}\n\n[model.agent]")],
)
def test_costs_are_those_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builder: str, model: str
) -> None:
    monkeypatch.setattr(paper_detectors, "FIELD", (64, 64))
    row = measure_costs(config(tmp_path, builder, model), rounds=1)
    assert 0.05 < row["M parameters"] < 1
    assert row["GFLOPs"] > 0.01
    assert row["ms a field"] > 0
    assert row["peak MB"] > 50


def test_a_training_that_has_ended_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int, int]] = []

    def train(plan: Any, _config: Path, _data: Path, out: Path, _device: str) -> None:
        trained.append((out.name, plan.loop.seed, plan.loop.steps))
        out.mkdir(parents=True)
        (out / registry.CARD).touch()
        (out / "curves.csv").write_text("what,curve,step,value\nloss,a,2,1\nfigure,slide-04 AP,2,0.25\n")
        if plan.loop.seed == 1 and len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(paper_detectors, "train_as_planned", train)
    figures = {f"slide-05 {name}": 0.5 for name in ("AP", *BESIDE_AP)}
    monkeypatch.setattr(paper_detectors, "figures_of", lambda *_: figures)
    path = config(tmp_path, "faster_rcnn", f"[model]\n{SMALL}")
    trials = Trials(tmp_path / "runs", tmp_path, (0, 1), 3, "cpu", Record(tmp_path / "measured"))
    trials.run(path, 0)
    with pytest.raises(KeyboardInterrupt):
        trials.run(path, 1)
    runs = [trials.run(path, seed) for seed in trials.seeds]
    assert trained == [(f"wang2021_lite0_fpn-3-steps-seed-{seed}", seed, 3) for seed in (0, 1)]
    row = accuracy_row(path, runs, "slide-05")
    assert (row["AP"], row["AP by seed"], row["paper's AP"]) == (0.5, "0.500, 0.500", 0.678)
    assert [line["seed"] for line in trials.record.detectors.rows()] == [0, 1]
    assert [(line["seed"], line["step"], line["value"]) for line in trials.record.watched.rows()] == [
        (0, 2, 0.25),
        (1, 2, 0.25),
    ]


def test_a_name_that_no_config_has_is_told() -> None:
    assert [path.stem for path in configs(["vgg16"])] == ["wang2021_vgg16_fpn"]
    with pytest.raises(ValueError, match=r"no config in .* is called like vgg99"):
        configs(["vgg99"])
