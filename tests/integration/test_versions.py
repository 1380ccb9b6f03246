"""Versions of models in a real MLflow: a SQLite file, and a server that goes away and comes back."""

import json
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import DARK_CARD
from registries import free_port, mlflow_server

from wbc.models import builders, registry, tracking, versions
from wbc.models.cards import ModelError, ModelRef
from wbc.models.versions import CHALLENGER, CHAMPION, Fit

NAME = "wbc-detector"
pytestmark = pytest.mark.timeout(600)


def model(folder: Path, level: float) -> Path:
    """A detector without weights, another for each level."""
    card = replace(DARK_CARD, arguments={"level": level, "smallest_px": 12}, metrics={"slide-05 AP50": level})
    registry.save(folder, builders.build(card), card)
    (folder / "checkpoint.pt").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def registered(mlflow_file: str, tmp_path: Path) -> list[int]:
    """Two versions of a detector."""
    return [versions.register(model(tmp_path / str(level), level), NAME) for level in (0.4, 0.5)]


def test_a_version_is_its_model_with_all_that_is_told_of_the_fit(mlflow_file: str, tmp_path: Path) -> None:
    curve = tmp_path / "loss.png"
    curve.write_bytes(b"a picture")
    fit = Fit({"AP50": 0.9, "nothing measured": float("nan")}, (curve,), "abc", "def", (ModelRef("x", "1" * 64),))
    number = versions.register(model(tmp_path / "m", 0.4), NAME, replace(fit, params={"steps": "10"}))
    version = versions.version_of(f"models:/{NAME}/{number}")
    assert version.metrics == {"slide-05 AP50": 0.4, "AP50": 0.9}
    assert (version.tags["dataset"], version.tags["code_revision"]) == ("abc", "def")
    assert version.tags["parents"] == f"x@{'1' * 12}"
    folder = registry.locate(version.reference)
    assert {file.name for file in folder.iterdir()} == {"MLmodel", "card.json", "model.safetensors"}
    ref, card = registry.resolve(version.reference, "detector")
    assert ref.digest == card.digest == registry.read_card(str(tmp_path / "m")).digest
    assert registry.load(ref, "cpu").card.arguments["level"] == 0.4
    (kept,) = (tmp_path / "mlartifacts").rglob("loss.png")
    assert kept.read_bytes() == b"a picture"


def test_an_alias_is_pinned_to_the_version_that_it_means(registered: list[int]) -> None:
    first, second = registered
    versions.set_alias(NAME, CHAMPION, first)
    ref, _ = registry.resolve(f"models:/{NAME}@{CHAMPION}", "detector")
    versions.set_alias(NAME, CHAMPION, second)
    assert ref.reference == f"models:/{NAME}/{first}"
    assert registry.load(ref, "cpu").card.arguments["level"] == 0.4
    assert versions.champion_or_bundled("detector") == f"models:/{NAME}/{second}"
    assert versions.champion_or_bundled("classifier") == "bundled:classifier"


def test_rolling_back_is_one_step_and_knows_the_way(registered: list[int]) -> None:
    first, second = registered
    with pytest.raises(ModelError, match="no champion"):
        versions.rollback(NAME)
    versions.promote(f"models:/{NAME}/{first}")
    versions.set_alias(NAME, CHALLENGER, second)
    assert versions.promote(f"models:/{NAME}@{CHALLENGER}").aliases == (CHAMPION,)
    assert versions.rollback(NAME).number == first
    bundled = versions.rollback(NAME)
    assert registry.read_card(bundled.reference) == registry.read_card("bundled:detector")
    assert versions.import_model("bundled:detector") == bundled.number  # one model is one version
    with pytest.raises(ModelError, match="was the first champion"):
        versions.rollback(NAME)
    assert [version.number for version in versions.versions(NAME)] == [bundled.number, second, first]


def test_a_version_goes_out_to_a_folder_and_comes_back(registered: list[int], tmp_path: Path) -> None:
    reference = f"models:/{NAME}/{registered[0]}"
    card = versions.export_version(reference, tmp_path / "out")
    assert card == registry.read_card(str(tmp_path / "out")) == registry.read_card(reference)
    assert versions.import_model(str(tmp_path / "out")) == registered[0]
    with pytest.raises(ValueError, match="is not empty"):
        versions.export_version(reference, tmp_path / "out")


def test_what_is_no_model_is_no_version(mlflow_file: str, tmp_path: Path) -> None:
    model(tmp_path / "m", 0.4)
    with pytest.raises(ModelError, match="can be a version of wbc-detector, not of wbc-classifier"):
        versions.register(tmp_path / "m", "wbc-classifier")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelError, match="its card says"):
        versions.register(tmp_path / "m", NAME)
    for reference in (f"models:/{NAME}@nobody", f"models:/{NAME}/7", f"models:/{NAME}/latest"):
        with pytest.raises(ModelError, match=reference):
            registry.resolve(reference, "detector")
    assert versions.versions(NAME) == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client gives up after seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")


def test_a_server_that_goes_away_leaves_no_half_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    folder, port = model(tmp_path / "m", 0.4), free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path, port) as address:
        whole = versions.register(folder, NAME, Fit({"AP50": 0.9}))
        assert registry.read_card(f"models:/{NAME}/{whole}") == registry.read_card(str(folder))
        assert NAME in listed(address)
        check, gone = tracking._check_whole, threading.Event()

        def leave(*arguments: object) -> None:
            gone.set()
            gone_for_good.wait(60)
            check(*arguments)  # type: ignore[arg-type]

        gone_for_good = threading.Event()
        monkeypatch.setattr(tracking, "_check_whole", leave)
        failures: list[Exception] = []
        fitting = threading.Thread(target=attempt, args=(folder, failures))
        fitting.start()
        assert gone.wait(60)
    gone_for_good.set()
    fitting.join(120)
    (failure,) = failures
    assert f"nothing was registered as '{NAME}' in MLflow at http://127.0.0.1:{port}" in str(failure)
    monkeypatch.setattr(tracking, "_check_whole", check)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    later: list[int] = []
    waiting = threading.Thread(target=lambda: later.append(versions.register(folder, NAME)))
    waiting.start()  # it waits for the server, and goes on
    with mlflow_server(tmp_path, port):
        waiting.join(120)
        assert [version.number for version in versions.versions(NAME)] == [*later, whole]


def attempt(folder: Path, failures: list[Exception]) -> None:
    try:
        versions.register(folder, NAME)
    except ModelError as error:
        failures.append(error)


def listed(address: str) -> str:
    with urllib.request.urlopen(f"{address}/api/2.0/mlflow/registered-models/search", timeout=30) as answer:
        return json.dumps(json.load(answer))
