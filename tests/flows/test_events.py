"""Who waits for annotations is told when some were added, and adding works where nobody can be told."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner
from upath import UPath

from flows.events import ANNOTATIONS_ADDED, resource_id
from wbc.cli.main import app
from wbc.datasets.annotation_store import AnnotationStore
from wbc.datasets.coco import write_coco
from wbc.datasets.labels import LabelledPicture


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """A COCO file of one picture with one box."""
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    picture = LabelledPicture(tmp_path / "a.png", np.array([[1, 2, 30, 40]], np.float32), ("Lymphocytes",))
    write_coco(tmp_path / "coco.json", [picture], tmp_path)
    return tmp_path / "coco.json"


def add(annotations: Path, store: UPath) -> str:
    told = CliRunner().invoke(app, ["annotations", "add", str(annotations), "--store", str(store), "--by", "ada"])
    assert told.exit_code == 0, told.stderr
    assert [p.labels for p in AnnotationStore(store).read()] == [("lymphocyte",)]
    return told.stderr


@pytest.mark.usefixtures("prefect_server")
def test_the_server_has_the_event_with_its_count(annotations: Path, tmp_path: Path) -> None:
    store = UPath(tmp_path / "store")
    assert add(annotations, store) == ""
    wanted, last = EventFilter(event=EventNameFilter(name=[ANNOTATIONS_ADDED])), time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while not (events := client.read_events(wanted, limit=50).events) and time.monotonic() < last:
            time.sleep(0.2)
    (event,) = events
    assert event.resource.id == resource_id(str(store))
    assert event.payload == {
        "annotations": 1,
        "pictures": 1,
        "by": "ada",
        "shard": AnnotationStore(store).shards()[0],
    }


def test_without_a_server_they_are_added_and_it_is_said(annotations: Path, tmp_path: Path) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert "added, but no training was told: no Prefect server is set" in add(annotations, UPath(tmp_path / "s1"))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert "the Prefect server at http://127.0.0.1:9/api does not answer" in add(
            annotations, UPath(tmp_path / "s2")
        )
