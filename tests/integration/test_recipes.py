"""`wbc train` from a config and a folder of data to a model that counts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from wbc.configs import read_toml
from wbc.models import builders, registry
from wbc.models.reference_cells import ReferenceCells, keep_reference_cells, read_reference_cells
from wbc.revision import code_revision, file_revision
from wbc.synth.smear import SmearSettings, render_slides
from wbc.training.classifier import ClassifierConfig, train_classifier
from wbc.training.classifier_data import CropTable, read_crops
from wbc.training.detector import DetectorConfig, train_detector
from wbc.training.measure import classifier_confusion
from wbc.training.whole_pictures import WholeSettings

KINDS = ["segmented_neutrophil", "band_neutrophil", "lymphocyte"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small rendered fields with truth, and a table of single cells painted one colour a kind, no two alike."""
    root = tmp_path_factory.mktemp("data")
    render_slides(root / "smears", 1, 2, 3, SmearSettings(height_px=400, width_px=500))
    rng = np.random.default_rng(0)
    rows = []
    for i in range(48):
        kind = KINDS[i % 3]
        pixels = np.full((224, 224, 3), 230, np.uint8)
        pixels[60:164, 60:164] = np.eye(3, dtype=np.uint8)[i % 3] * 160 + rng.integers(0, 40, (104, 104, 3), np.uint8)
        cloud = Image.fromarray(rng.integers(0, 40, (12, 12)).astype(np.uint8)).resize((224, 224))
        pixels = (pixels - np.minimum(pixels, np.asarray(cloud)[..., None])).astype(np.uint8)
        path = root / "cell.jpg"
        Image.fromarray(pixels).save(path)
        rows.append({"split": ("train", "test")[i // 24], "kind": kind, "file": f"{i}.jpg", "jpeg": path.read_bytes()})
    pd.DataFrame(rows).to_parquet(root / "cells.parquet")
    return root


def detector_config(path: Path, names: dict[str, str], steps: int = 2) -> Path:
    table = json.dumps(names).replace(": ", " = ").replace('" = ', '" = ')
    path.write_text(f"""
classes = ["rbc", "platelet", "wbc"]
builder = "faster_rcnn"
um_per_px = 0.2
frozen = ["conv_stem", "bn1", "blocks.0."]
credits = ["rendered"]
[model]
backbone = "tf_efficientnet_lite0"
pyramid_channels = 16
head_width = 16
[loop]
steps = {steps}
batch = 1
data_workers = 0
[mosaic]
size_px = 128
[calibrate]
pictures = 2
[[data]]
format = "coco"
images = "smears"
annotations = "smears/truth_coco.json"
keep = "slide-01/field-02.jpg"
names = {table}
weight = 1.0
[[measure]]
set = "smears"
format = "coco"
images = "smears"
annotations = "smears/truth_coco.json"
keep = "slide-01/field-01.jpg"
names = {table}
""")
    return path


@pytest.fixture(scope="module")
def names(data: Path) -> dict[str, str]:
    truth = json.loads((data / "smears/truth_coco.json").read_text())
    return {c["name"]: c["name"] if c["name"] in ("rbc", "platelet") else "wbc" for c in truth["categories"]}


def test_a_trained_detector_has_a_card_with_its_figures_and_resumes(
    data: Path, names: dict[str, str], tmp_path: Path
) -> None:
    config = detector_config(tmp_path / "detector.toml", names)
    card = train_detector(config, data, tmp_path / "model", "cpu")
    assert (card.task, card.credits) == ("detector", ("rendered",))
    assert card.code_revision == code_revision()
    assert {"smears AP", "smears AP50", "smears AP50_wbc"} <= set(card.metrics)
    _, saved = registry.resolve(str(tmp_path / "model"), "detector")
    assert saved == card
    again = train_detector(config, data, tmp_path / "model", "cpu")  # nothing is left to do: the same weights
    assert again.sha256 == saved.sha256


def classifier_config(path: Path, steps: int, table: str = "cells.parquet") -> Path:
    path.write_text(f"""
classes = ["segmented_neutrophil", "band_neutrophil", "lymphocyte"]
builder = "crop_classifier"
taxonomy = "blood"
threshold = 0.4
[model]
backbone = "tf_efficientnet_lite0"
[crop]
input_px = 64
um_per_px = 0.32
[loop]
steps = {steps}
batch = 8
rate = 1e-3
warm_up = 2
average = 0.5
data_workers = 0
slow = []
[jitter]
plain = 1.0
[[data]]
format = "crops"
table = "{table}"
splits = ["train"]
um_per_px = 0.1
[[measure]]
set = "cells"
format = "crops"
table = "cells.parquet"
splits = ["test"]
um_per_px = 0.1
""")
    return path


def test_a_classifier_learns_from_coarse_labels_too(data: Path, tmp_path: Path) -> None:
    table = pd.read_parquet(data / "cells.parquet")
    table.loc[table.index[:3], "kind"] = "neutrophil"
    table.to_parquet(data / "coarse.parquet")
    config = classifier_config(tmp_path / "classifier.toml", 70, "coarse.parquet")
    card = train_classifier(config, data, tmp_path / "model", "cpu")
    assert (card.input_px, card.threshold) == (64, 0.4)
    assert registry.resolve(str(tmp_path / "model"), "classifier")[1] == card
    crops = read_crops(CropTable("cells.parquet", ("test",), 0.1), data)
    matrix = classifier_confusion(crops, str(tmp_path / "model"), "cpu")
    assert matrix.sum() == 24
    assert card.metrics["cells accuracy"] == round(float(np.trace(matrix) / 24), 4)
    assert card.metrics["cells accuracy"] >= 0.9  # three kinds of three colours: chance is a third


def test_a_classifier_starts_from_another_and_its_frozen_parts_stay(data: Path, tmp_path: Path) -> None:
    first = classifier_config(tmp_path / "first.toml", 4)
    train_classifier(first, data, tmp_path / "first", "cpu")
    keep_reference_cells(
        tmp_path / "first", ReferenceCells(np.zeros((1, 3), np.float16), ("lymphocyte",), ("elsewhere",))
    )
    config = tmp_path / "second.toml"
    text = first.read_text().replace('"lymphocyte"]', '"lymphocyte", "monocyte"]')
    start = f'start = "{tmp_path / "first"}"\nfrozen = ["conv_stem", "bn1", "blocks.0"]\n'
    config.write_text(f"{start}{text}")
    with pytest.raises(ValueError, match=r"second\.toml: the data have no sample of monocyte: add some, "):
        train_classifier(config, data, tmp_path / "second", "cpu")
    config.write_text(f'{start}may_lack = ["monocyte"]\n{text}')
    card = train_classifier(config, data, tmp_path / "second", "cpu")
    assert card.classes[-1] == "monocyte"
    assert [parent.reference for parent in card.parents] == [str(tmp_path / "first")]
    assert card.reference_sha256 == ""  # of other classes
    before, after = (load_file(tmp_path / model / registry.WEIGHTS) for model in ("first", "second"))
    assert before.keys() == after.keys()
    same = {
        name for name in before if before[name].shape == after[name].shape and torch.equal(before[name], after[name])
    }
    frozen = {n for n in before if n.startswith(("conv_stem", "bn1", "blocks.0")) and "num_batches" not in n}
    assert frozen <= same
    assert not [n for n in same if n.startswith(("blocks.3", "conv_head")) and n.endswith("weight")]


def test_lower_levels_are_learnt_upon_frozen_parts_of_a_classifier_without(data: Path, tmp_path: Path) -> None:
    first = classifier_config(tmp_path / "first.toml", 4)
    train_classifier(first, data, tmp_path / "first", "cpu")
    config, text = tmp_path / "second.toml", first.read_text()
    text = text.replace("[model]", "[model]\nlower_levels = true")
    config.write_text(
        f'start = "{tmp_path / "first"}"\nfrozen = ["backbone.conv_stem", "backbone.bn1", "backbone.blocks.0"]\n{text}'
    )
    cells = ReferenceCells(np.full((4, 3), 0.25, np.float16), ("lymphocyte",) * 4, ("a", "a", "b", "b"))
    keep_reference_cells(tmp_path / "first", cells)
    card = train_classifier(config, data, tmp_path / "second", "cpu")
    ref, read = registry.resolve(str(tmp_path / "second"), "classifier")
    assert card == read
    inherited = read_reference_cells(ref)
    assert inherited is not None
    assert inherited.to_bytes() == cells.to_bytes()
    before, after = (load_file(tmp_path / model / registry.WEIGHTS) for model in ("first", "second"))
    stem = "conv_stem.weight"
    assert torch.equal(before[stem], after[f"backbone.{stem}"])
    width = before["classifier.weight"].shape[1]
    assert after["classifier.weight"][:, width:].any()


def test_a_model_of_another_architecture_is_no_start(data: Path, tmp_path: Path) -> None:
    config = classifier_config(tmp_path / "classifier.toml", 2)
    text = config.read_text().replace("tf_efficientnet_lite0", "test_efficientnet")
    config.write_text('start = "bundled:classifier"\n' + text)
    with pytest.raises(ValueError, match=r"'bundled:classifier' is of another architecture: .*lite0"):
        train_classifier(config, data, tmp_path / "model", "cpu")


class OneCell(nn.Module):
    """The smallest detector that can be trained: one box in the middle of a tile, the class of all by three biases."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 3)
        self.logits = nn.Linear(4, 4)

    @property
    def body(self) -> nn.Module:
        return self.features

    @property
    def class_bias(self) -> Tensor:
        return self.logits.bias[1:]

    def forward(self, tiles: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        logits = torch.stack([self.logits(self.features(tile[None]).mean((0, 2, 3))) for tile in tiles])
        if targets is not None:
            labels = torch.stack([t["labels"][:1].sum() for t in targets])  # 0, the background, where there is none
            return {"loss_class": nn.functional.cross_entropy(logits, labels)}
        scores, labels = logits.softmax(1)[:, 1:].max(1)
        boxes = [torch.tensor([[0.0, 0.0, t.shape[2], t.shape[1]]]) for t in tiles]
        return [
            {"boxes": b, "scores": s[None], "labels": k[None] + 1}
            for b, s, k in zip(boxes, scores, labels, strict=True)
        ]


def test_any_architecture_that_offers_what_training_asks_is_trained(
    data: Path, names: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(builders.BUILDERS, "one_cell", lambda card: OneCell())
    config = detector_config(tmp_path / "detector.toml", names)
    text = config.read_text().replace('"faster_rcnn"', '"one_cell"\nimagenet = false').replace('"bn1", "blocks.0."', "")
    table = text[text.index("[model]") : text.index("[loop]")]
    config.write_text(text.replace(table, "[model]\n").replace('"conv_stem", ', ""))
    card = train_detector(config, data, tmp_path / "model", "cpu")
    assert {"smears AP", "smears AP50"} <= set(card.metrics)
    ref, _ = registry.resolve(str(tmp_path / "model"), "detector")
    assert isinstance(registry.load(ref, "cpu").module, OneCell)


def test_a_detector_starts_from_another_class_by_class(data: Path, names: dict[str, str], tmp_path: Path) -> None:
    first = detector_config(tmp_path / "first.toml", names)
    train_detector(first, data, tmp_path / "first", "cpu")
    config = tmp_path / "second.toml"
    text = first.read_text().replace('"rbc", "platelet", "wbc"', '"wbc", "rbc", "platelet"')
    unmoved = text.replace("batch = 1", "batch = 1\nrate = 0.0\naverage = 0.0")
    config.write_text(f'start = "{tmp_path / "first"}"\n{unmoved}')
    card = train_detector(config, data, tmp_path / "second", "cpu")
    assert [parent.reference for parent in card.parents] == [str(tmp_path / "first")]
    before, after = (load_file(tmp_path / model / registry.WEIGHTS) for model in ("first", "second"))
    rows = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(after[rows], before[rows][[0, 3, 1, 2]])  # the background's stays the first
    assert torch.equal(
        after["backbone.body.blocks.3.0.conv_pw.weight"], before["backbone.body.blocks.3.0.conv_pw.weight"]
    )


def test_a_detector_starts_from_one_with_a_wider_pyramid(data: Path, names: dict[str, str], tmp_path: Path) -> None:
    first = detector_config(tmp_path / "first.toml", names)
    train_detector(first, data, tmp_path / "first", "cpu")
    config = tmp_path / "second.toml"
    text = first.read_text().replace("batch = 1", "batch = 1\nrate = 0.0\naverage = 0.0")
    first_model = str(tmp_path / "first")
    start = f'start = "{first_model}"\n'
    thin = "pyramid_channels = 6\nproposal_channels = 10"
    config.write_text(start + text.replace("pyramid_channels = 16", thin))
    card = train_detector(config, data, tmp_path / "second", "cpu")
    assert (card.arguments["pyramid_channels"], card.arguments["proposal_channels"]) == (6, 10)
    assert [parent.reference for parent in card.parents] == [first_model]
    before, after = (load_file(tmp_path / model / registry.WEIGHTS) for model in ("first", "second"))
    assert after["rpn.head.conv.0.0.weight"].shape == (10, 6, 3, 3)
    assert torch.equal(after["roi_heads.box_head.fc7.weight"], before["roi_heads.box_head.fc7.weight"])
    config.write_text(start + text.replace("head_width = 16", "head_width = 12"))
    train_detector(config, data, tmp_path / "narrower", "cpu")
    after = load_file(tmp_path / "narrower" / registry.WEIGHTS)
    assert after["roi_heads.box_head.fc7.weight"].shape == (12, 12)
    assert torch.equal(after["rpn.head.conv.0.0.weight"], before["rpn.head.conv.0.0.weight"])
    config.write_text(start + text.replace("pyramid_channels = 16\nhead_width = 16\n", ""))
    assert train_detector(config, data, tmp_path / "same", "cpu").arguments == registry.read_card(first_model).arguments
    config.write_text(start + text.replace("pyramid_channels = 16", "pyramid_channels = 20"))
    with pytest.raises(ValueError, match="is of another architecture"):
        train_detector(config, data, tmp_path / "third", "cpu")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_thinner_detector_learns_from_the_answers_of_a_wider_one(
    data: Path, names: dict[str, str], tmp_path: Path, processes: int
) -> None:
    wide = detector_config(tmp_path / "wide.toml", names)
    train_detector(wide, data, tmp_path / "wide", "cpu")
    config = tmp_path / "thin.toml"
    text = wide.read_text().replace("pyramid_channels = 16", "pyramid_channels = 8").replace("batch = 1", "batch = 2")
    taught = f'[distil]\nteacher = "{tmp_path / "wide"}"\nweight = 2.0\n[loop]'
    text = text.replace("[calibrate]", "[calibrate]\nas_teacher = ['rbc']")
    config.write_text(f'start = "{tmp_path / "wide"}"\n' + text.replace("[loop]", taught))
    card = train_detector(config, data, tmp_path / "thin", "cpu", processes)
    assert [parent.reference for parent in card.parents] == [str(tmp_path / "wide")]  # once, though it is both
    curves = pd.read_csv(tmp_path / "thin" / "curves.csv").set_index("curve")["value"]
    assert {"loss_classifier", "teacher_objectness", "teacher_corners"} <= set(curves.index)
    assert (curves.filter(like="teacher_").groupby(level=0).mean() > 0).all()
    taught_by_another = config.read_text().replace(
        taught, taught.replace(f"{tmp_path / 'wide'}", f"{tmp_path / 'thin'}")
    )
    config.write_text(taught_by_another)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: the teacher was [0-9a-f]{12}… before, [0-9a-f]{12}… now"):
        train_detector(config, data, tmp_path / "thin", "cpu")
    config.write_text(taught_by_another.replace("weight = 2.0", "weight = -1.0"))
    with pytest.raises(ValueError, match=r"thin\.toml.*weight is -1\.0"):
        train_detector(config, data, tmp_path / "thin", "cpu")
    config.write_text(taught_by_another.replace("um_per_px = 0.2", "um_per_px = 0.4"))
    with pytest.raises(ValueError, match=r"thin\.toml: the teacher 'wbc-detector' has other µm per px: 0\.2, not 0\.4"):
        train_detector(config, data, tmp_path / "other", "cpu")


def test_a_detector_learns_from_whole_pictures_at_their_scale(
    data: Path, names: dict[str, str], tmp_path: Path
) -> None:
    config = detector_config(tmp_path / "detector.toml", names)
    text = config.read_text().replace("um_per_px = 0.2\n", "")
    text = text.replace("[mosaic]\nsize_px = 128", "[whole]\nshort_px = 160")
    text = text.replace("[[measure]]", "[[watch]]")
    config.write_text(text.replace("batch = 1", 'batch = 1\noptimizer = "sgd"\nwatch_every = 1'))
    card = train_detector(config, data, tmp_path / "model", "cpu")
    assert card.um_per_px == pytest.approx(SmearSettings().um_per_px * 400 / 160, rel=0.3)  # by few red cells
    curves = pd.read_csv(tmp_path / "model" / "curves.csv")
    assert curves[curves["curve"] == "smears AP50"]["step"].tolist() == [1, 2]
    assert set(curves["curve"]) >= {"loss_classifier", "loss_box_reg", "smears AP"}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[mosaic]", "[mosaics]", r"mosaics is unknown; the keys are classes, builder, "),
        ("size_px", "side_px", r"mosaic\.side_px is unknown; the keys are size_px, "),
        ("steps = 2", 'steps = "two"', r"loop\.steps is 'two', not an integer"),
        ('set = "smears"', "", r"each \[\[measure\]\] needs a name for its figures: set"),
        ('format = "coco"', 'format = "cocoa"', r"data\[1\]\.format is 'cocoa', none of 'voc', "),
        ('"faster_rcnn"', '"dark_regions"', r"arguments: backbone is unknown; the keys are level, smallest_px"),
        ('"tf_efficientnet_lite0"', '"resnet18"', r"no packaged ImageNet weights for 'resnet18'.*imagenet to false"),
        (
            "head_width = 16",
            "expanded_channels = [64, 144, 144, 240, 240, 480, 480, 480, 672, 672, 672, 1152, 1152, 1152, 1152]",
            r"no ImageNet weights fit blocks\.1\.0\.bn1\.bias: name a start, or no expanded_channels",
        ),
        ('"blocks.0."', '"block.0"', r"frozen is .*'block\.0'\]: .*block"),
    ],
)
def test_what_is_wrong_with_a_config_is_named(
    data: Path, names: dict[str, str], tmp_path: Path, old: str, new: str, told: str
) -> None:
    config = detector_config(tmp_path / "detector.toml", names)
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"detector\.toml: {told}"):
        train_detector(config, data, tmp_path / "model", "cpu")


def test_a_builder_without_anything_to_train_is_named(data: Path, names: dict[str, str], tmp_path: Path) -> None:
    config = detector_config(tmp_path / "detector.toml", names)
    text = config.read_text().replace('"faster_rcnn"', '"dark_regions"')
    config.write_text(text.replace(text[text.index("[model]") : text.index("[loop]")], "[model]\n"))
    with pytest.raises(ValueError, match=r"detector\.toml: builder is 'dark_regions', which cannot be trained"):
        train_detector(config, data, tmp_path / "model", "cpu")


def test_the_configs_of_the_bundled_models_are_sound() -> None:
    configs = Path(__file__).parents[2] / "configs"
    wide = read_toml(configs / "detector.toml", DetectorConfig)
    thin = read_toml(configs / "thin-detector.toml", DetectorConfig)
    classifier = read_toml(configs / "classifier.toml", ClassifierConfig)
    made = {"detector": "wide-detector", "thin-detector": "detector", "classifier": "classifier"}
    for config, (file, name) in zip((wide, thin, classifier), made.items(), strict=True):
        card = registry.read_card(f"bundled:{name}")
        assert (config.classes, config.builder, config.name) == (card.classes, card.builder, card.name)
        assert config.model.items() <= card.arguments.items()
        assert file_revision(configs / f"{file}.toml") == card.dataset  # who edits a config trains its model anew
    for config, task in ((wide, "detector"), (classifier, "classifier")):
        again = read_toml(configs / f"retrain-{task}.toml", type(config))
        assert again.start == f"models:/wbc-{task}@champion"
        assert (again.classes, again.builder) == (config.classes, config.builder)
        assert again.model.items() <= registry.read_card(f"bundled:{task}").arguments.items()
        assert [spec.format for spec in again.data] == [*(spec.format for spec in config.data), "store"]
    assert (thin.data, thin.mosaic) == (wide.data, wide.mosaic)
    assert thin.distil is not None
    assert thin.start == thin.distil.teacher == "bundled:wide-detector"
    assert registry.resolve(thin.start, "detector")[0] in registry.read_card("bundled:detector").parents


def test_the_papers_way_is_a_config_that_trains(data: Path, names: dict[str, str], tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "configs" / "wang2021.toml").read_text()
    plan = read_toml(Path(__file__).parents[2] / "configs" / "wang2021.toml", DetectorConfig)
    assert (plan.loop.optimizer, plan.loop.batch, plan.loop.steps, plan.whole) == ("sgd", 2, 30_000, WholeSettings(800))
    assert [spec.part for spec in (*plan.data, *plan.watch)] == [(0.0, 0.9), (0.9, 1.0)]
    small = detector_config(tmp_path / "small.toml", names).read_text()
    block, held = small[small.index("[[data]]") :].split("[[measure]]")
    # One process: a worker forked from a test run's many threads may not end well.
    changes = {"30000": "2", "800": "160", "1024": "16", "256\nhead": "16\nhead", "2500": "2"}
    changes |= {"batch = 2": "batch = 1\ndata_workers = 0"}
    for old, new in changes.items():
        text = text.replace(old, new)
    watch = f"[[watch]]{held}".replace('set = "smears"', 'set = "held out"')
    (tmp_path / "wang.toml").write_text(
        text[: text.index("[[data]]")] + "\n[calibrate]\npictures = 1\n" + block + watch
    )
    card = train_detector(tmp_path / "wang.toml", data, tmp_path / "model", "cpu")
    assert card.arguments["canonical_px"] == 224
    curves = pd.read_csv(tmp_path / "model" / "curves.csv")
    assert "held out AP50" in set(curves["curve"])
