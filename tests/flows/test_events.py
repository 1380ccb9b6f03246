"""Who waits for annotations is told when some were added, and adding works where nobody can be told."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner
from upath import UPath

from flows.events import ANNOTATIONS_ADDED, ANNOTATIONS_DUE, resource_id
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


def add(annotations: Path, store: UPath, due: int = 500) -> str:
    where = ["--store", str(store), "--by", "ada", "--due", str(due)]
    told = CliRunner().invoke(app, ["annotations", "add", str(annotations), *where])
    assert told.exit_code == 0, told.stderr
    assert [p.labels for p in AnnotationStore(store).read()] == [("lymphocyte",)]
    return told.stderr


def events_about(store: UPath, name: str, seconds: float = 60) -> list[Any]:
    """The server's events of a name about a store, as soon as there is one."""
    wanted, last = EventFilter(event=EventNameFilter(name=[name])), time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        while True:
            every = client.read_events(wanted, limit=50).events
            events = [event for event in every if event.resource.id == resource_id(str(store))]
            if events or time.monotonic() > last:
                return events
            time.sleep(0.2)


@pytest.mark.usefixtures("prefect_server")
def test_the_server_has_the_event_with_its_count(annotations: Path, tmp_path: Path) -> None:
    store = UPath(tmp_path / "store")
    assert add(annotations, store) == ""
    (event,) = events_about(store, ANNOTATIONS_ADDED)
    assert event.payload == {
        "annotations": 1,
        "pictures": 1,
        "by": "ada",
        "shard": AnnotationStore(store).shards()[0],
        "waiting": 1,
        "due": 500,
    }
    assert events_about(store, ANNOTATIONS_DUE, seconds=0) == []


@pytest.mark.usefixtures("prefect_server")
def test_annotations_are_due_when_enough_wait_since_the_last_training(annotations: Path, tmp_path: Path) -> None:
    store = UPath(tmp_path / "store")
    add(annotations, store, due=2)
    assert events_about(store, ANNOTATIONS_DUE, seconds=0) == []
    add(annotations, store, due=2)
    (event,) = events_about(store, ANNOTATIONS_DUE)
    assert event.payload["waiting"] == 2
    place = AnnotationStore(store)
    place.mark_trained(place.snapshot())
    add(annotations, store, due=2)
    assert place.count_since(place.last_trained()) == 1
    assert len(events_about(store, ANNOTATIONS_DUE)) == 1


def test_without_a_server_they_are_added_and_it_is_said(annotations: Path, tmp_path: Path) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert "added, but no training was told: no Prefect server is set" in add(annotations, UPath(tmp_path / "s1"))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert "the Prefect server at http://127.0.0.1:9/api does not answer" in add(
            annotations, UPath(tmp_path / "s2")
        )
