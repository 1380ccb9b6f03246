"""A run that is stopped goes on as if it had not been, and the recipes learn what they are shown."""

import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import ops

from wbc.datasets.augment import Jitter
from wbc.datasets.crops import PATCH_PX, Crops
from wbc.models import builders
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.training.classifier_data import CropSamples, CropSettings
from wbc.training.detector import detection_losses, freeze_body, unfreeze_body
from wbc.training.kind_losses import tree_losses
from wbc.training.loop import Lesson, LoopSettings, fit, rate_factor
from wbc.training.measure import crop_probabilities

CPU = torch.device("cpu")
HALF = (0.5, 0.5, 0.5)
SETTINGS = LoopSettings(
    steps=6, batch=4, rate=1e-2, warm_up=2, average=0.7, slow=("first",), checkpoint_every=3, data_workers=0
)


class Numbers(Dataset[tuple[Tensor, Tensor]]):
    """Sample i depends on i alone."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(index)
        x = torch.from_numpy(rng.standard_normal(5, np.float32))
        return x, x.sum()[None]

    def pictures(self, index: int) -> list[str]:
        return [f"picture-{index % 7}.jpg"]

    @property
    def digest(self) -> str:
        return "numbers"


class Small(nn.Module):
    """With dropout and batch statistics: all that a resumed run could get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.dropout(self.norm(self.first(x)).relu()))
        return y


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def stack(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {"loss": (model(batch[0]) - batch[1]).square().mean()}


def run(checkpoint: Path, settings: LoopSettings = SETTINGS, losses: Callable[..., Any] = squares) -> nn.Module:
    return fit(small(), Lesson(Numbers(), stack, losses), settings, checkpoint)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(value, expected), name


def dying(after: int) -> Callable[..., Any]:
    """Losses of `after` steps, then a run that is killed."""
    steps = iter(range(after))

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return squares(model, batch)

    return losses


# Resuming


@pytest.mark.parametrize("killed_after", [1, 3, 4, 5])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, killed_after: int) -> None:
    undisturbed = run(tmp_path / "undisturbed.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", losses=dying(killed_after))
    assert_same(run(tmp_path / "killed.pt"), undisturbed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.csv", "killed.pt", "undisturbed.pt"]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from test_loop import run, squares

torch.set_num_threads(1)

def killed_at_step_4(model, batch, steps=iter(range(99))):
    if next(steps) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return squares(model, batch)

run(Path(sys.argv[1]), losses=killed_at_step_4)
"""


def test_a_run_under_sigkill_resumes_to_the_same_loss_curve(tmp_path: Path) -> None:
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "killed.pt"], env=os.environ | path, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "killed.pt", weights_only=True)["step"] == 3
    assert_same(run(tmp_path / "killed.pt"), run(tmp_path / "undisturbed.pt"))
    curves = [torch.load(tmp_path / name, weights_only=True)["curves"] for name in ("killed.pt", "undisturbed.pt")]
    assert curves[0] == curves[1]
    assert len(curves[0]["losses"]["loss"]) == SETTINGS.steps


def test_without_room_for_a_checkpoint_the_older_one_stays(tmp_path: Path) -> None:
    run(tmp_path / "c.pt", replace(SETTINGS, seconds=1e-9))
    before = (tmp_path / "c.pt").read_bytes()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignoring = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, usual[1]))
    try:
        with pytest.raises(OSError, match=r"no checkpoint of step 3: .*the one before it stands.*c\.pt"):
            run(tmp_path / "c.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        signal.signal(signal.SIGXFSZ, ignoring)
    assert (tmp_path / "c.pt").read_bytes() == before
    assert_same(run(tmp_path / "c.pt"), run(tmp_path / "undisturbed.pt"))


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "c.pt", replace(SETTINGS, seconds=1e-9))
    monkeypatch.setattr(Numbers, "digest", "other numbers")
    with pytest.raises(ValueError, match=r"c\.pt: .*data were numbers.* before, other.* now"):
        run(tmp_path / "c.pt")


def test_a_run_out_of_time_leaves_a_checkpoint_at_each_step_it_made(tmp_path: Path) -> None:
    hurried = replace(SETTINGS, seconds=1e-9, checkpoint_every=100)
    for step in range(1, 4):
        run(tmp_path / "c.pt", hurried)
        assert torch.load(tmp_path / "c.pt", weights_only=True)["step"] == step
    assert_same(run(tmp_path / "c.pt"), run(tmp_path / "undisturbed.pt"))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    finished = run(tmp_path / "c.pt")
    assert_same(run(tmp_path / "c.pt", losses=dying(0)), finished)


def test_training_returns_the_averaged_weights_in_eval_mode(tmp_path: Path) -> None:
    result = run(tmp_path / "c.pt")
    assert not result.training
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    for name, value in result.state_dict().items():
        assert torch.equal(value, saved["averaged"][f"module.{name}"])
    assert not torch.equal(result.state_dict()["last.weight"], saved["model"]["last.weight"])


def test_another_seed_draws_another_dropout(tmp_path: Path) -> None:
    one, other = run(tmp_path / "a.pt"), run(tmp_path / "b.pt", replace(SETTINGS, seed=1))
    assert not torch.equal(one.state_dict()["last.weight"], other.state_dict()["last.weight"])


def test_the_rate_is_saved_and_restored_like_the_rest(tmp_path: Path) -> None:
    def rates(path: Path) -> list[float]:
        saved = torch.load(path, weights_only=True)
        assert saved["schedule"]["last_epoch"] == saved["step"]
        return [group["lr"] for group in saved["optimizer"]["param_groups"]]

    run(tmp_path / "undisturbed.pt", replace(SETTINGS, checkpoint_every=100))
    hurried = replace(SETTINGS, seconds=1e-9)
    for step in range(1, SETTINGS.steps):
        run(tmp_path / "c.pt", hurried)
        expected = [SETTINGS.rate * slow * rate_factor(step, SETTINGS) for slow in (1.0, 1.0, 0.5, 0.5)]
        assert rates(tmp_path / "c.pt") == pytest.approx(expected)
    run(tmp_path / "c.pt", hurried)
    assert rates(tmp_path / "c.pt") == rates(tmp_path / "undisturbed.pt")


def test_a_checkpoint_of_another_version_is_named_and_not_half_restored(tmp_path: Path) -> None:
    run(tmp_path / "c.pt", replace(SETTINGS, seconds=1e-9))
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    torch.save({k: v for k, v in saved.items() if k != "schedule"}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt: it has no schedule, .*: delete it"):
        run(tmp_path / "c.pt")


# The loop


def test_sgd_goes_down_the_gradient(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=200, rate=0.01, optimizer="sgd", slow=(), average=0.0)
    run(tmp_path / "c.pt", settings)
    losses = torch.load(tmp_path / "c.pt", weights_only=True)["curves"]["losses"]["loss"]
    assert sum(losses[-50:]) < 0.7 * sum(losses[:50])


def test_what_is_watched_is_measured_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    def watch(model: nn.Module) -> dict[str, float]:
        assert not model.training
        return {"figure": sum(p.abs().sum().item() for p in model.parameters())}

    settings = replace(SETTINGS, steps=5, watch_every=2)
    result = fit(small(), Lesson(Numbers(), stack, squares, watch), settings, tmp_path / "c.pt")
    figures = torch.load(tmp_path / "c.pt", weights_only=True)["curves"]["figures"]["figure"]
    assert [step for step, _ in figures] == [2, 4, 5]
    assert figures[-1][1] == watch(result)["figure"]
    assert_same(result, fit(small(), Lesson(Numbers(), stack, squares), settings, tmp_path / "unwatched.pt"))
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert len(lines) == 1 + 5  # the second run has written it anew


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    settings = LoopSettings(steps=100, batch=1, warm_up=10, decay=0.4)
    factors = [rate_factor(step, settings) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(factors[10:60]) == {1.0}
    assert factors[60:] == pytest.approx([(100 - i) / 40 for i in range(60, 101)])


def test_slow_parameters_move_half_as_far(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1, warm_up=0, decay=0.0, weight_decay=0.0)
    before, after = small().state_dict(), run(tmp_path / "c.pt", settings).state_dict()
    moved = {name: (after[name] - before[name]).abs().max().item() for name in ("first.weight", "last.weight")}
    assert moved["last.weight"] == pytest.approx(1e-2, rel=0.05)
    assert moved["first.weight"] == pytest.approx(0.5e-2, rel=0.05)


def test_a_loss_that_is_no_number_ends_the_run_with_its_step_and_parts(tmp_path: Path) -> None:
    def broken(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"loss_good": squares(model, batch)["loss"], "loss_bad": torch.tensor(math.nan)}

    with pytest.raises(FloatingPointError, match=r"step 0: .*nan.*: picture-0\.jpg, .*picture-3\.jpg$"):
        run(tmp_path / "c.pt", losses=broken)
    assert not (tmp_path / "c.pt").exists()


# Recipes


CLASSIFIER = ModelCard(
    "c",
    "1",
    "classifier",
    "crop_classifier",
    {"backbone": "test_efficientnet"},
    ("red", "blue"),
    0.4,
    32,
    HALF,
    HALF,
    "",
)


def test_the_classifiers_recipe_tells_red_from_blue(tmp_path: Path) -> None:
    pixels = np.full((2, PATCH_PX, PATCH_PX, 3), 230, np.uint8)
    pixels[0, 60:120, 60:120], pixels[1, 60:120, 60:120] = (200, 40, 40), (40, 40, 200)
    crops, window = Crops(pixels, ("red", "blue")), CropSettings(input_px=32, um_per_px=0.4)
    samples = CropSamples([(crops, {"red": 0, "blue": 1}, 1.0)], window, Jitter(plain=1.0), seed=0)
    torch.manual_seed(0)
    model = fit(
        builders.build(CLASSIFIER),
        Lesson(
            samples,
            lambda drawn: (torch.stack([p for p, _ in drawn]), torch.tensor([row for _, row in drawn])),
            tree_losses(np.eye(2, dtype=np.float32), HALF, HALF),
        ),
        LoopSettings(steps=30, batch=8, rate=5e-3, warm_up=5, average=0.8, slow=(), data_workers=0),
        tmp_path / "c.pt",
    )
    chances = crop_probabilities(crops, LoadedModel(model, CLASSIFIER, CPU))
    assert chances.argmax(1).tolist() == [0, 1]
    assert chances.max(1).min() > 0.8


DETECTOR = ModelCard(
    name="d",
    version="1",
    task="detector",
    builder="faster_rcnn",
    arguments={"backbone": "test_efficientnet", "pyramid_channels": 32, "head_width": 64},
    classes=("rbc", "wbc"),
    um_per_px=0.2,
    input_px=0,
    mean=HALF,
    std=HALF,
    sha256="",
)
PLACES = [  # x, y, label
    [(30, 30, 1), (84, 40, 2), (40, 95, 1)],
    [(26, 80, 2), (90, 24, 1), (100, 100, 1)],
    [(64, 64, 2), (20, 20, 1)],
    [(100, 60, 1), (60, 20, 1), (30, 90, 2), (88, 100, 1)],
]
RADII = {1: 15, 2: 24}


class FourPictures(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Small pale and large dark discs on white, 128 px a side."""

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        y, x = np.mgrid[:128, :128]
        pixels = np.full((3, 128, 128), 0.9, np.float32)
        boxes = []
        for cx, cy, label in PLACES[index % 4]:
            disc = (x - cx) ** 2 + (y - cy) ** 2 <= RADII[label] ** 2
            pixels[:, disc] = np.array([[[0.8], [0.5], [0.5]], [[0.35], [0.2], [0.6]]], np.float32)[label - 1]
            boxes.append([cx - RADII[label], cy - RADII[label], cx + RADII[label] + 1, cy + RADII[label] + 1])
        labels = torch.tensor([label for _, _, label in PLACES[index % 4]])
        return torch.from_numpy(pixels), {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": labels}

    def pictures(self, index: int) -> list[str]:
        return [f"picture {index % 4}"]

    @property
    def digest(self) -> str:
        return "four pictures"


def test_frozen_parts_and_batch_statistics_stay_as_they_were(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = builders.build(DETECTOR)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    freeze_body(model, ("conv_stem",))
    settings = LoopSettings(steps=2, batch=2, rate=1e-2, warm_up=0, average=0.0, data_workers=0)
    after: Any = fit(model, Lesson(FourPictures(), list, detection_losses), settings, tmp_path / "c.pt")
    unfreeze_body(after)
    assert not any(part.training for part in after.modules())
    assert after.state_dict().keys() == before.keys()
    changed = {k for k, v in after.state_dict().items() if not torch.equal(v, before[k])}
    assert not [k for k in changed if "conv_stem" in k or "bn" in k]
    assert [k for k in changed if k.startswith("backbone.body.blocks")]
    assert [k for k in changed if k.startswith("roi_heads")]


@pytest.mark.slow
def test_the_detectors_recipe_learns_four_pictures_by_heart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    # After 140 steps the proposals are less sure than a finished detector's.
    model: Any = builders.build(replace(DETECTOR, arguments=dict(DETECTOR.arguments) | {"lowest_objectness": 0.02}))
    freeze_body(model, ())
    settings = LoopSettings(steps=140, batch=4, rate=1e-3, warm_up=10, average=0.8, slow=(), data_workers=0)
    trained = fit(model, Lesson(FourPictures(), list, detection_losses), settings, tmp_path / "c.pt")
    for index in range(4):
        pixels, truth = FourPictures()[index]
        with torch.inference_mode():
            seen = trained([pixels])[0]
        sure = seen["scores"] > 0.5
        iou = ops.box_iou(truth["boxes"], seen["boxes"][sure])
        assert sure.sum() == len(truth["labels"])
        assert iou.max(1).values.min() > 0.75
        assert torch.equal(seen["labels"][sure][iou.argmax(1)], truth["labels"])
