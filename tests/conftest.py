"""Fixtures for all tests: painted slides, whose cells are known to the pixel, and a detector that finds just these."""

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jobs
import numpy as np
import pytest
import torch
from counted import called, count_tables
from fixture_types import CommitSlide
from hypothesis import settings
from painted import make_slide
from upath import UPath

from wbc.differential import differential_of
from wbc.models import builders
from wbc.models.cards import ModelCard
from wbc.models.registry import LoadedModel
from wbc.storage import tables
from wbc.storage.categorical import Categorical
from wbc.storage.counts import commit
from wbc.storage.tables import FailedField, Seconds, SlideRow
from wbc.taxonomy import Taxonomy, load_taxonomy

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
settings.register_profile("wbc", deadline=None)  # how long an example takes tells of the machine's other work
settings.load_profile("wbc")
torch.set_num_threads(1)  # tests share the machine with each other, and small tensors gain nothing from threads


@pytest.fixture(scope="session")
def dark_card() -> ModelCard:
    """The card of a detector that finds painted discs, at 0.2 µm per px."""
    return jobs.DARK_CARD


@pytest.fixture(scope="session")
def dark_model(dark_card: ModelCard) -> LoadedModel:
    """That detector, in memory."""
    return LoadedModel(builders.build(dark_card), dark_card, torch.device("cpu"))


@pytest.fixture(scope="session")
def dark_folder() -> Path:
    """That detector, saved."""
    return jobs.dark_folder()


@pytest.fixture
def painted_slide(tmp_path: Path) -> UPath:
    """A folder of three painted fields: 5, 6 and 7 cells."""
    return make_slide(UPath(tmp_path / "slides" / "s1"), 3)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides: WBC_TEST_DATA, else the one beside the repository. Tests that need it are skipped."""
    folder = Path(os.environ.get("WBC_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "slides" / "truth_coco.json").is_file():
        pytest.skip(f"no real slides in {folder}: WBC_TEST_DATA names their folder")
    return folder


@pytest.fixture(scope="session")
def bucket() -> Iterator[UPath]:
    """A bucket of an S3 server on this machine, which this process and those that it starts reach by `s3://`."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    address, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (keys | {"AWS_ENDPOINT_URL": f"http://{address}:{port}"}).items():
            environment.setenv(name, value)
        lab = UPath("s3://lab")
        lab.mkdir()
        yield lab
    server.stop()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's: making one takes it seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def mlflow_file(mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an MLflow database of the test's own, in its tmp_path, which versions are kept in."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture(scope="session")
def commit_slide() -> CommitSlide:
    """Leaves a slide's tables in `out` as a count of ten fields does: the types of its cells, and how sure of each."""

    def committed(
        out: UPath,
        slide_id: str,
        kinds: Sequence[str],
        type_scores: Sequence[float] | None = None,
        taxonomy: Taxonomy | None = None,
        failed: tuple[FailedField, ...] = (),
    ) -> None:
        own, n = taxonomy or load_taxonomy("blood"), len(kinds)
        result = differential_of(kinds, own, len(failed))
        cells = tables.cells_table(
            slide_id,
            Categorical.repeat("field-001.jpg", n),
            np.tile(np.array([10, 20, 110, 120], np.float32), (n, 1)),
            np.full(n, 0.9, np.float32),
            called(kinds, [0.9] * n if type_scores is None else type_scores),
        )
        row = SlideRow(
            slide_id=slide_id,
            count_id="c0",
            counted_at=datetime(2026, 11, 21, 2, 0, tzinfo=UTC),
            n_fields=10,
            n_fields_failed=len(failed),
            failed_fields=failed,
            n_cells=result.n_cells,
            n_differential=result.n_differential,
            n_unidentified=result.n_unidentified,
            um_per_px=0.1028,
            scale_from="red_cells",
            me_ratio=result.me_ratio,
            me_low=result.me_low,
            me_high=result.me_high,
            nrbc_per_100_wbc=result.nrbc_per_100_wbc,
            flags=result.flags,
            detector="d@0",
            classifier="c@0",
            taxonomy=own.name,
            wbc_version="0.1.0",
            seconds=Seconds(),
        )
        commit(out, count_tables(cells, tables.differentials_table(slide_id, result)), row)

    return committed
