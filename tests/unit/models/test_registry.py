"""A model that is saved is the model that is loaded, and a reference that cannot be used says why."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.registry import ModelError, ModelRef

HALF = (0.5, 0.5, 0.5)
SMALL = {"backbone": "test_efficientnet", "pyramid_channels": 16, "head_width": 32}


def card_of(task: str) -> ModelCard:
    detector = task == "detector"
    return ModelCard(
        name="small",
        version="1",
        task="detector" if detector else "classifier",
        builder="faster_rcnn" if detector else "crop_classifier",
        arguments=dict(SMALL) if detector else {"backbone": "test_efficientnet"},
        classes=("rbc", "wbc"),
        um_per_px=0.2,
        input_px=0 if detector else 64,
        mean=HALF,
        std=HALF,
        sha256="",
        credits=("für Zellen",),
    )


def trained(card: ModelCard) -> nn.Module:
    """A module with weights that its builder would not give it, all exact in half precision."""
    torch.manual_seed(1)
    module = builders.build(card)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01 * torch.rand_like(value)).copy_(value.half().float())
    return module


def outputs(module: nn.Module, task: str) -> list[torch.Tensor]:
    torch.manual_seed(2)
    with torch.inference_mode():
        if task == "classifier":
            return [module(torch.rand(2, 3, 64, 64))]
        return list(module([torch.rand(3, 96, 128)])[0].values())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    card = card_of("classifier")
    registry.save(tmp_path / "model", trained(card), card)
    return tmp_path / "model"


def rewrite_card(folder: Path, **changes: Any) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("task", ["detector", "classifier"])
def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, task: str) -> None:
    module = trained(card_of(task))
    card = registry.save(tmp_path, module, card_of(task))
    ref, read = registry.resolve(str(tmp_path), card.task)
    loaded = registry.load(ref, "cpu")
    assert read == loaded.card == card
    assert not loaded.module.training
    for seen, expected in zip(outputs(loaded.module, task), outputs(module, task), strict=True):
        assert torch.equal(seen, expected)
    assert len(outputs(module, task)[0])


def test_weights_between_two_half_precision_numbers_come_back_close(tmp_path: Path) -> None:
    card, module = card_of("classifier"), builders.build(card_of("classifier"))
    ref, _ = registry.resolve(str((registry.save(tmp_path, module, card), tmp_path)[1]), "classifier")
    for name, value in registry.load(ref, "cpu").module.state_dict().items():
        torch.testing.assert_close(value, module.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_a_card_is_read_without_torch(saved: Path) -> None:
    program = (
        "import sys; from wbc.models import registry; registry.resolve(sys.argv[1], 'classifier'); "
        "sys.exit(not {'torch', 'torchvision', 'timm'}.isdisjoint(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program, str(saved)], check=True)


def test_one_process_loads_a_model_once(saved: Path) -> None:
    ref, _ = registry.resolve(str(saved), "classifier")
    assert registry.load(ref, "cpu") is registry.load(ref, "cpu")


@pytest.mark.parametrize("reference", ["/no/such/folder", "bundled:nothing", "bundled:", ""])
def test_a_reference_to_nothing_is_named(reference: str) -> None:
    with pytest.raises(ModelError, match=f"no (bundled )?model '{reference}'"):
        registry.resolve(reference, "detector")


def test_a_registry_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModelError, match=r"pip install 'wbc\[mlflow\]'"):
        registry.resolve("models:/wbc-detector@champion", "detector")


def test_a_classifier_is_no_detector(saved: Path) -> None:
    with pytest.raises(ModelError, match="is a classifier, not a detector"):
        registry.resolve(str(saved), "detector")


def test_changed_weights_are_found_out(saved: Path) -> None:
    weights = saved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: sha256 is \w{12}…, its card says"):
        registry.resolve(str(saved), "classifier")


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors does not exist"):
        registry.resolve(str(saved), "classifier")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"name": "x"}', "\x00"])
def test_a_broken_card_is_named(saved: Path, content: str) -> None:
    (saved / "card.json").write_text(content)
    with pytest.raises(ModelError, match=r"card\.json: "):
        registry.resolve(str(saved), "classifier")


def test_a_card_that_is_no_text_is_named(saved: Path) -> None:
    (saved / "card.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ModelError, match=r"card\.json: "):
        registry.resolve(str(saved), "classifier")


def test_unknown_fields_of_a_card_are_named(saved: Path) -> None:
    rewrite_card(saved, temperature=2)
    with pytest.raises(ModelError, match=r"card\.json: temperature is unknown; the keys are name, "):
        registry.resolve(str(saved), "classifier")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"classes": ["rbc", "wbc", "platelet"]}, "does not fit its card: 2 tensors differ, first 'classifier.bias'"),
        ({"arguments": {"backbone": "test_resnet"}}, r"does not fit its card: \d+ tensors differ"),
        ({"arguments": {"backbone": "no_such_net"}}, r"card\.json: .*no_such_net"),
        ({"arguments": {"depth": 3}}, r"card\.json: .*depth"),
        ({"builder": "oracle"}, r"card\.json: builder 'oracle' is none of \['adl', "),
    ],
)
def test_weights_that_do_not_fit_their_card_are_refused(saved: Path, changes: dict[str, Any], complaint: str) -> None:
    rewrite_card(saved, **changes)
    ref, _ = registry.resolve(str(saved), "classifier")
    with pytest.raises(ModelError, match=complaint):
        registry.load(ref, "cpu")


def test_a_file_that_is_no_safetensors_is_refused(saved: Path) -> None:
    weights = saved / "model.safetensors"
    torch.save({"weight": torch.zeros(1)}, weights)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        registry.load_weights(nn.Linear(1, 1), weights)


def test_a_model_that_changed_since_the_count_began_is_refused(saved: Path) -> None:
    ref, _ = registry.resolve(str(saved), "classifier")
    state = load_file(saved / "model.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, saved / "model.safetensors")
    card = replace(card_of("classifier"), version="2")
    registry.save(saved, registry.load_weights(builders.build(card), saved / "model.safetensors"), card)
    with pytest.raises(ModelError, match=f"the count began with {ref.digest[:12]}"):
        registry.load(ModelRef(ref.reference, ref.digest), "cpu")


@pytest.mark.parametrize("value", [70_000.0, float("nan"), float("inf")])
def test_weights_beyond_half_precision_are_not_saved_and_what_was_there_stays(saved: Path, value: float) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    module = trained(card_of("classifier"))
    with torch.no_grad():
        module.get_parameter("classifier.bias")[0] = value
    with pytest.raises(ValueError, match=r"classifier\.bias is not finite as fp16"):
        registry.save(saved, module, card_of("classifier"))
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_model_is_its_card_as_much_as_its_weights(saved: Path) -> None:
    ref, card = registry.resolve(str(saved), "classifier")
    module = registry.load(ref, "cpu").module
    registry.save(saved, module, replace(card, version="2", metrics={"accuracy": 0.5}))
    assert registry.resolve(str(saved), "classifier")[0] == ref
    assert registry.load(ref, "cpu").module is module
    registry.save(saved, module, replace(card, threshold=card.threshold + 0.1))
    registry.load.cache_clear()
    with pytest.raises(ModelError, match=f"the count began with {ref.digest[:12]}"):
        registry.load(ref, "cpu")
    other, _ = registry.resolve(str(saved), "classifier")
    assert registry.load(other, "cpu").card.threshold == card.threshold + 0.1
