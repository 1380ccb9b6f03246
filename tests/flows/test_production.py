"""The production set as compose.yaml has it: its files checked, its services up, failures on the way of a count."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from containers import DOCKER, Containers, why_not
from jobs import counted_on_threads
from painted import make_slide
from upath import UPath

from benchmarks.counted import read_tables

pytestmark = [pytest.mark.dask, pytest.mark.timeout(1800)]

PROGRAMS = Path(sys.executable).parent
UP_SECONDS, SECONDS, N_SLIDES = 900, 600, 30
SERVICES_OWN = ("source", "detector", "detections_digest")  # paths as the services see them, and what names them
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ENDED = {"COMPLETED", "FAILED", "CRASHED"}
STATE = """
import base64, json, os, sys, urllib.request
login = base64.b64encode(os.environ["PREFECT_API_AUTH_STRING"].encode()).decode()
request = urllib.request.Request(sys.argv[1], headers={"authorization": f"Basic {login}"})
print(json.load(urllib.request.urlopen(request, timeout=60))["state_type"])
"""
UNSAFE = (
    "import urllib.request as r; r.urlopen(r.Request({address!r}, b'{{}}', {{'content-type': 'application/json'}}))"
)


def configuration(folder: Path, *files: str) -> dict[str, Any]:
    """What Docker Compose makes of the files, with the settings in `folder`."""
    named = [word for file in files or ("compose.yaml",) for word in ("--file", str(folder / file))]
    command = [
        str(PROGRAMS / "docker-compose"),
        *named,
        "--env-file",
        str(folder / ".env"),
        "config",
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    config: dict[str, Any] = json.loads(done.stdout)
    return config


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder docker/ of an installation, set up as its documents say; data are beside it."""
    root = tmp_path_factory.mktemp("installation")
    folder = root / "docker"
    folder.mkdir()
    for file in DOCKER.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
            (folder / file.name).chmod(file.stat().st_mode & 0o777)
    settings = (folder / "example.env").read_text()
    settings = settings.replace("=/srv/slides", f"={root}/slides").replace("=/srv/wbc", f"={root}/data")
    (folder / ".env").write_text(settings.replace("WORKER_THREADS=2", "WORKER_THREADS=1"))
    (root / "slides").mkdir()
    for script in ("make-secrets", "make-folders"):
        subprocess.run([str(folder / script)], check=True)
    return folder


def test_files_pass_the_checks_of_their_field(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([str(PROGRAMS / "hadolint"), str(DOCKER / "Dockerfile")], check=True)
    for file in ("make-secrets", "make-folders", "make-databases", "backup", "restore", "with-secrets", "deploy"):
        subprocess.run(["bash", "-n", str(DOCKER / file)], check=True)
    cuda = configuration(installed, "compose.yaml", "compose.cuda.yaml")["services"]
    assert {cuda[name]["image"] for name in ("dask-scheduler", "dask-worker", "prefect-worker", "deploy")} == {
        "wbc:cuda"
    }
    assert cuda["dask-worker"]["scale"] == 1
    monkeypatch.setenv("WBC_GPU_WORKERS", "4")
    assert configuration(installed, "compose.yaml", "compose.cuda.yaml")["services"]["dask-worker"]["scale"] == 4


def test_every_service_is_confined_and_only_pages_are_published_on_loopback(installed: Path) -> None:
    config = configuration(installed)
    for name, service in config["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].partition(":")[0] not in ("", "0", "root"), name
        assert ":" in service["image"] or "build" in service, name
        assert service["restart"] in ("unless-stopped", "on-failure"), name
        assert "healthcheck" in service or name == "deploy", name
    published = {
        n: [(p["host_ip"], p["target"]) for p in s["ports"]] for n, s in config["services"].items() if "ports" in s
    }
    assert published == {"prefect-server": [("127.0.0.1", 4200)], "mlflow": [("127.0.0.1", 5000)]}


def test_secrets_are_made_once_and_stand_in_files_alone(installed: Path) -> None:
    secrets = {path.name: path.read_text() for path in (installed / "secrets").iterdir()}
    subprocess.run([str(installed / "make-secrets")], check=True)
    assert {path.name: path.read_text() for path in (installed / "secrets").iterdir()} == secrets
    assert (installed / "secrets").stat().st_mode & 0o077 == 0
    words = [text.rpartition(":")[2] for name, text in secrets.items() if "." not in name]
    assert len({*words}) == len(words) == 6
    assert all(len(word) >= 32 and word not in json.dumps(configuration(installed)) for word in words)


@pytest.fixture(scope="module")
def site(installed: Path, dark_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """All services, up and well."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    for file in dark_folder.iterdir():
        place = installed.parent / "data" / "trainings" / "painted" / file.name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(file.read_bytes())
    with Containers(configuration(installed), tmp_path_factory.mktemp("containers")) as containers:
        containers.up(UP_SECONDS)
        yield containers


def test_nobody_gets_in_without_a_password_or_a_certificate(site: Containers) -> None:
    for address in ("http://prefect-server:4200/api/flows/filter", "http://mlflow:5000/api/2.0/mlflow/runs/search"):
        refused = site.run("deploy", ["python", "-c", UNSAFE.format(address=address)], check=False)
        assert "401" in refused.stderr, refused.stderr
    refused = site.run("backup", ["psql", "--no-password", "--dbname=prefect", "--command=SELECT 1"], check=False)
    assert "no password supplied" in refused.stderr
    wrong = ["env", "PGPASSWORD=postgres", "psql", "--dbname=prefect", "--command=SELECT 1"]
    assert "password authentication failed" in site.run("backup", wrong, check=False).stderr
    stranger = "import distributed as d; d.Client('tcp://dask-scheduler:8786', timeout=3)"
    assert site.run("deploy", ["python", "-c", stranger], check=False).returncode != 0
    forbidden = site.run("dask-worker", ["touch", "/opt/wbc/new", "/new", "/srv/wbc/slides/new"], check=False)
    assert forbidden.stderr.count("Read-only file system") == 3


def wait_for(what: Callable[[], Any], site: Containers) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(site.logs())


def test_a_count_outlives_a_worker_and_a_restart_of_the_database(
    site: Containers, installed: Path, tmp_path: Path
) -> None:
    root = installed.parent
    for i in range(N_SLIDES):
        make_slide(UPath(root / "slides" / f"slide-{i:02d}"), 4, cells=2 + i % 18)
    rows = root / "data" / "counts" / "slides"
    given = {"detector": "/srv/wbc/trainings/painted", "classifier": None}
    words = [word for name, value in given.items() for word in ("--param", f"{name}={json.dumps(value)}")]
    asked = site.run("deploy", ["prefect", "deployment", "run", "count-slides/count-slides", *words])
    wait_for(lambda: rows.is_dir() and len(list(rows.glob("slide-*.parquet"))) > 1, site)
    site.stop("postgres-0")
    site.stop("dask-worker-0", kill=True)
    assert len(list(rows.glob("slide-*.parquet"))) < N_SLIDES
    time.sleep(2)
    site.start("postgres", 0)
    site.start("dask-worker", 0)

    run = f"http://prefect-server:4200/api/flow_runs/{re.findall(UUID, asked.stdout)[0]}"
    state = ["python", "-c", STATE, run]  # no answer while the server's database is away
    ended = wait_for(lambda: ENDED & {site.run("deploy", state, check=False).stdout.strip()}, site)
    assert ended == {"COMPLETED"}, site.logs()
    found = read_tables(UPath(root / "data" / "counts"))
    assert [reason for reason in found["slides"]["reason"].fillna("") if reason] == [], site.logs()
    expected = counted_on_threads(UPath(root / "slides"), UPath(tmp_path / "out"))
    for name, table in found.items():
        columns = [column for column in table if column not in SERVICES_OWN]
        pd.testing.assert_frame_equal(table[columns], expected[name][columns])
