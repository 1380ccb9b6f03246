"""A training whose servers, MLflow's and Prefect's, are killed in the middle of it and at its end, and come back."""

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect_servers import asked, own_prefect_server
from registries import free_port, mlflow_server
from small_trainings import add, configs

pytestmark = pytest.mark.timeout(600)
ROOT = Path(__file__).parents[2]
STEPS, SECONDS = 300, 150
# Slow until the file `hurry` is there, so that it lasts until its servers are back.
TRAIN = """
import sys, time
from pathlib import Path
from flows import training
from flows.train_classifier import train_classifier
from wbc.training.progress import watching
training.register_version = training.register_version.with_options(retry_delay_seconds=2)
class Slow:
    def begins(self, *_): pass
    def checkpointed(self, *_): pass
    def step_done(self, *_):
        if not Path(sys.argv[4]).exists(): time.sleep(0.4)
with watching(Slow()):
    train_classifier(*sys.argv[1:4], device="cpu")
"""


class Site:
    """A folder with all that the two servers keep, and a training that reports to them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "training.log"
        self._prefect, self._mlflow = free_port(), free_port()
        self.api, self.registry = f"http://127.0.0.1:{self._prefect}/api", f"http://127.0.0.1:{self._mlflow}"

    def prefect(self) -> AbstractContextManager[str]:
        return own_prefect_server(self.folder, self._prefect)

    def mlflow(self) -> AbstractContextManager[str]:
        return mlflow_server(self.folder, self._mlflow)

    def train(self, config: Path) -> "subprocess.Popen[bytes]":
        own = {"PREFECT_API_URL": self.api, "MLFLOW_TRACKING_URI": self.registry, "PYTHONPATH": str(ROOT)}
        own |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "PREFECT_CLIENT_MAX_RETRIES": "1"}
        own |= {"PREFECT_HOME": str(self.folder / "client")}
        words = [str(config), str(self.folder), str(self.folder / "runs"), str(self.folder / "hurry")]
        with self.log.open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-c", TRAIN, *words], env=os.environ | own, stdout=said, stderr=said
            )

    def wait_for(self, words: str) -> None:
        """Wait until the training has said it."""
        deadline = time.monotonic() + SECONDS
        while words not in self.log.read_text():
            assert time.monotonic() < deadline, f"{words}: {self.log.read_text()}"
            time.sleep(0.1)


def test_a_training_outlives_its_servers_and_says_so(tmp_path: Path) -> None:
    add(tmp_path, 4)
    _, config = configs(tmp_path, steps=STEPS)
    site = Site(tmp_path)
    with ExitStack() as stack:
        with site.prefect(), site.mlflow():
            training = stack.enter_context(site.train(config))
            stack.callback(training.kill)
            site.wait_for("step 4 of")
        site.wait_for("curves are not in MLflow yet, training goes on")
        site.wait_for("no progress artifact: Prefect's server does not answer, training goes on")
        with site.prefect(), site.mlflow():
            site.wait_for("MLflow answers again: its curves are complete up to step")
            site.wait_for("Prefect's server answers again: wbc-classifier")
        (tmp_path / "hurry").touch()
        site.wait_for("Prefect's server does not answer: waiting for it")
        stack.enter_context(site.prefect())
        site.wait_for("waiting, then trying again")
        assert training.poll() is None
        stack.enter_context(site.mlflow())
        assert training.wait(SECONDS) == 0, site.log.read_text()
        told = site.log.read_text()
        assert told.count("no progress artifact") == told.count("Prefect's server answers again: ") == 2, told
        check_all_is_told(site)


def check_all_is_told(site: Site) -> None:
    """One whole version with every step of its curve; the flow run is done, and its progress artifact full."""
    client = MlflowClient(site.registry)
    (version,) = client.search_model_versions("name = 'wbc-classifier'")
    history = client.get_metric_history(version.run_id, "loss")
    # What a server kept and could no longer answer for has been sent again: a point may be there twice.
    assert sorted({point.step for point in history}) == list(range(1, STEPS + 1))
    assert client.get_run(version.run_id).info.status == "FINISHED"
    (run,) = asked(f"{site.api}/flow_runs/filter", {})
    assert run["state"]["type"] == "COMPLETED"
    (progress,) = asked(f"{site.api}/artifacts/filter", {"artifacts": {"type": {"any_": ["progress"]}}})
    assert progress["data"] == 100
