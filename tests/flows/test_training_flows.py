"""The training flows, with a Prefect server and an MLflow database: versions with all that tells of them."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from small_trainings import add, configs

from flows import training
from flows.retrain import NotRetrained, retrain
from flows.train_classifier import train_classifier
from flows.train_detector import train_detector
from wbc.models import tracking, versions
from wbc.models.cards import ModelError
from wbc.training.following import LiveRun
from wbc.training.progress import Curves

pytestmark = [pytest.mark.usefixtures("prefect_server", "mlflow_file"), pytest.mark.timeout(600)]


def artifacts(key: str) -> list[Any]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def test_a_training_becomes_a_version_with_curves_pictures_and_artifacts(tmp_path: Path) -> None:
    store, (config, _) = add(tmp_path, 3), configs(tmp_path)
    reference = train_detector(str(config), str(tmp_path), str(tmp_path / "runs"), device="cpu")
    version = versions.version_of(reference)
    assert reference == "models:/wbc-detector/1"
    assert version.tags["dataset"] == store.snapshot().digest
    (folder,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in folder.iterdir()} >= {"curves.csv", "curves.png", "predictions.png", "order.json"}
    shown = {path.name for path in (tmp_path / "mlartifacts").rglob("*.*")}
    assert shown >= {"curves.png", "predictions.png", "order.json"}
    history = tracking._mlflow().MlflowClient().get_metric_history(version.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    described = tracking._mlflow().MlflowClient().get_model_version("wbc-detector", "1").description
    assert described.startswith("A detector of rbc, wbc, at 0.2 µm per px.")
    assert f"![curves.png](get-artifact?path=curves.png&run_uuid={version.run_id})" in described
    watched = tracking._mlflow().MlflowClient().get_metric_history(version.run_id, "held out AP50")
    assert [point.step for point in watched] == [2, 4]
    (progress,) = artifacts(folder.name.lower())
    assert progress.data == 100
    (result,) = artifacts("train-detector")
    assert reference in result.data.replace("\\", "")

    before = (folder / "order.json").stat().st_mtime_ns
    assert train_detector(str(config), str(tmp_path), str(tmp_path / "runs"), device="cpu") == reference
    assert (folder / "order.json").stat().st_mtime_ns == before


def test_both_models_learn_from_what_is_new_and_from_nothing_else(tmp_path: Path) -> None:
    store, (detector, classifier) = add(tmp_path, 4), configs(tmp_path, steps=2)
    asked = {"detector": str(detector), "classifier": str(classifier), "device": "cpu"}
    runs = str(tmp_path / "runs")
    for name in ("detector", "classifier"):
        assert retrain(str(tmp_path), runs, **asked, least_new=100, return_state=True).name == "NothingNew", name
    references = retrain(str(tmp_path), runs, **asked, least_new=16)
    assert references == ["models:/wbc-detector/1", "models:/wbc-classifier/1"]
    assert [versions.version_of(r).aliases for r in references] == [("challenger",)] * 2
    assert store.last_trained() == store.snapshot()
    assert retrain(str(tmp_path), runs, **asked, return_state=True).name == "NothingNew"

    for reference in references:
        versions.promote(reference)
    add(tmp_path, 1, seed=1)
    configs(tmp_path, steps=2, start="models:/wbc-{}@champion")
    again = retrain(str(tmp_path), runs, **asked)
    assert again == ["models:/wbc-detector/2", "models:/wbc-classifier/2"]
    starts = [json.loads((folder / "order.json").read_text())["start"] for folder in sorted(Path(runs).iterdir())]
    assert sorted(starts) == sorted(["", "", *references])


def test_a_model_that_cannot_be_trained_costs_the_other_nothing(tmp_path: Path) -> None:
    store, (detector, classifier) = add(tmp_path, 3), configs(tmp_path, steps=2)
    classifier.write_text(classifier.read_text().replace('"monocyte"]', '"monocyte", "basophil"]'))
    with pytest.raises(NotRetrained, match=r"classifier: .*no sample of basophil"):
        retrain(str(tmp_path), str(tmp_path / "runs"), str(detector), str(classifier), device="cpu")
    assert [v.number for v in versions.versions("wbc-detector")] == [1]
    assert versions.versions("wbc-classifier") == []
    assert store.last_trained() is None


def test_a_registry_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, 4)
    _, config = configs(tmp_path, steps=2)
    calls: list[str] = []

    def away_once(*arguments: Any) -> int:
        calls.append("register")
        if len(calls) == 1:
            raise ModelError("MLflow does not answer") from ConnectionError("refused")
        return versions.register(*arguments)

    monkeypatch.setattr(training, "register", away_once)
    monkeypatch.setattr(training, "register_version", training.register_version.with_options(retry_delay_seconds=0.1))
    reference = train_classifier(str(config), str(tmp_path), str(tmp_path / "runs"), device="cpu")
    assert calls == ["register"] * 2
    assert [v.reference for v in versions.versions("wbc-classifier")] == [reference]


def test_a_config_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml: no such file"):
        train_classifier(str(tmp_path / "none.toml"), str(tmp_path), str(tmp_path / "runs"), device="cpu")


def test_curves_come_to_mlflow_when_it_answers_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[int] = []
    is_away = True

    def log_curves(run_id: str, rows: Any) -> None:
        if is_away:
            raise ModelError("no answer")
        sent.extend(step for step, _ in rows)

    monkeypatch.setattr(tracking, "log_curves", log_curves)
    live, curves = LiveRun("run"), Curves()
    with caplog.at_level(logging.WARNING, "wbc"):
        for step in range(1, 7):
            is_away = step < 5
            curves.add_losses({"loss": 1.0})
            live.checkpointed(step, curves)
            deadline = time.monotonic() + 10
            while live._last and not live._last.done() and time.monotonic() < deadline:
                time.sleep(0.01)
    live.close()
    assert sent == [1, 2, 3, 4, 5, 6]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "training goes on: no answer" in told[0]
    assert "complete up to step 5" in told[1]
