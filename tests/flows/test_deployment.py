"""The deployment, as a laboratory runs it: a Prefect server, a worker, and the nightly count asked for at once."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pandas as pd
import psutil
import pytest
from painted import make_slide
from prefect_servers import asked
from processes import survivors
from registries import free_port
from upath import UPath

from flows.slide_table import slide_line
from wbc.counting.slide import SlideOutcome
from wbc.storage.tables import FailedField
from wbc.taxonomy import load_taxonomy
from wbc.types import Slide

pytestmark = [pytest.mark.dask, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
SECONDS, STOP_SECONDS = 240, 20
FLOW = "count-slides/count-slides"


@dataclass(frozen=True)
class Site:
    """A laboratory's Prefect: the server's API, its clients' environment, its worker, and the folder of the logs."""

    api: str
    environment: dict[str, str]
    worker: psutil.Process
    logs: Path

    def ask(self, path: str, values: dict[str, Any] | None = None) -> Any:
        return asked(f"{self.api}/{path}", values)

    def change(self, path: str, values: dict[str, Any]) -> bool:
        body = json.dumps(values).encode()
        headers = {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.api}/{path}", body, headers, method="PATCH")):
            return True

    def call(self, *words: str) -> str:
        return called(words, self.environment)

    def wait_for(self, what: Callable[[], Any]) -> Any:
        return wait_for(what, self.logs)


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command under way, stopped at the end with all that it started."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):  # a worker that has cancelled a run may wait without end
            process.wait(STOP_SECONDS)
        for left in [process, *started]:
            with suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


def called(words: tuple[str, ...], environment: dict[str, str]) -> str:
    ran = subprocess.run(prefect(*words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]


def wait_for(what: Callable[[], Any], logs: Path) -> Any:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.5)
    raise AssertionError("\n".join(f"{log}: {log.read_text()[-3000:]}" for log in logs.glob("*.log")))


@contextmanager
def laboratory(logs: Path, **more: str) -> Iterator[Site]:
    """The commands that deployments/prefect.yaml names, run against a server of their own, with `more` variables."""
    api = f"http://127.0.0.1:{(port := free_port())}/api"
    own = {"PREFECT_HOME": str(logs / "home"), "PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | own | more
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    server = prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(server, environment, logs / "server.log"):
        wait_for(lambda: asked(f"{api}/health"), logs)
        called(("work-pool", "create", "wbc", "--type", "process"), environment)
        called(("--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all"), environment)
        with running(prefect("worker", "start", "--pool", "wbc"), environment, logs / "worker.log") as worker:
            yield Site(api, environment, psutil.Process(worker.pid), logs)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A laboratory with its worker."""
    with laboratory(tmp_path_factory.mktemp("logs")) as its:
        yield its


def test_deployment_counts_every_night_with_documented_parameters(site: Site) -> None:
    deployment = site.ask(f"deployments/name/{FLOW}")
    described = deployment["parameter_openapi_schema"]["properties"]
    assert deployment["parameters"]["detector"] == "bundled:detector"
    assert set(deployment["parameters"]) == set(described)
    assert all(parameter["description"] for parameter in described.values())

    planned = {"deployments": {"id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
    nights = site.wait_for(lambda: site.ask("flow_runs/filter", planned))
    zone = ZoneInfo(deployment["schedules"][0]["schedule"]["timezone"])
    starts = [pd.Timestamp(night["expected_start_time"]).tz_convert(zone) for night in nights]
    assert {(start.hour, start.minute) for start in starts} == {(2, 0)}
    assert [(b.date() - a.date()).days for a, b in pairwise(starts)] == [1] * (len(starts) - 1)


def parameters_of(folder: Path, detector: Path) -> dict[str, Any]:
    """Of a count of folder/slides into folder/out, with one worker process."""
    where = {"slides": str(folder / "slides"), "out": str(folder / "out")}
    return where | {"detector": str(detector), "classifier": None, "workers": 1}


def test_run_of_the_deployment_writes_tables_and_an_artifact_that_names_failed_fields(
    site: Site, tmp_path: Path, dark_folder: Path
) -> None:
    make_slide(UPath(tmp_path / "slides" / "one"), 2)
    make_slide(UPath(tmp_path / "slides" / "two"), 1)
    broken = tmp_path / "slides" / "one" / r"x](javascript:alert(1)) <b>`y`&amp;\.jpg"
    broken.write_text("no picture")
    parameters = parameters_of(tmp_path, dark_folder)
    given = (word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}"))
    site.call("deployment", "run", FLOW, *given, "--watch", "--watch-timeout", str(SECONDS))

    rows = pd.read_parquet(tmp_path / "out" / "slides").set_index("slide_id")
    assert rows["n_cells"].to_dict() == {"one": 5 + 6, "two": 5}
    (artifact,) = site.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["count-slides"]}}})
    one, two = json.loads(artifact["data"])
    assert (one["slide"], one["status"], one["cells"], one["failed fields"]) == ("one", "counted", 11, 1)
    assert "javascript" in one["what failed"]
    assert (two["slide"], two["status"], two["cells"], two["what failed"]) == ("two", "counted", 5, "")
    (shown, _), links, others = page_of(site, artifact["id"])
    assert shown[-1] == f"{broken.name}: is no JPEG, PNG, TIFF or BMP image ({broken})"
    assert (links, others) == ([], [])


NAMES = [
    *(
        r"a\b",
        "<b>x</b>",
        "<img src=x onerror=alert(1)>",
        "a>b &amp; &lt;i&gt; &#42;",
        "`code` ``` ~~~",
        "  two  spaces",
    ),
    *(
        "x](javascript:alert(1))",
        "[n](http://x/y)",
        "![i](x)",
        "*bold* _em_ ~~s~~",
        "https://example.org/a",
        "www.a.org",
    ),
    *(
        "a@example.org",
        "# head",
        "1. list",
        "- x",
        "> q",
        "---",
        "| a |",
        "[x]: http://a.b",
        "    four",
        "é µ <ü>",
        "end\\",
    ),
]


def test_names_of_slides_and_fields_are_shown_as_they_are(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WBC_REVIEW_URL", "https://lab.example/review")
    slides = []
    for name in (name.replace("/", ":") for name in NAMES):
        slides.append(Slide(name, (UPath(f"/slides/{name}.jpg"),)))
    lines = []
    for slide, text in zip(slides, NAMES, strict=True):
        failed = FailedField(slide.field_paths[0].name, f"no <i>picture</i>: {text}")
        outcome = SlideOutcome(slide.slide_id, "failed", 1, 0, (failed,), 1.0, f"`{text}`")
        lines.append(slide_line(outcome, slide, UPath("/out"), load_taxonomy("blood")))
    artifact = site.ask("artifacts/", {"type": "table", "key": "names", "data": json.dumps(lines)})
    shown, links, others = page_of(site, artifact["id"])
    assert [cells[0] for cells in shown] == [slide.slide_id for slide in slides]
    for cells, slide, text in zip(shown, slides, NAMES, strict=True):
        (path,) = slide.field_paths
        assert cells[-1] == f"`{text}`; {path.name}: no <i>picture</i>: {text} ({path}) review"
    assert others == []
    assert {link.partition("?")[0] for link in links} == {"https://lab.example/review"}
    queries = [parse_qs(urlsplit(link).query, strict_parsing=True) for link in links]
    assert queries == [{"slide": [s.slide_id], "field": [s.field_paths[0].name]} for s in slides]


class Cells(HTMLParser):
    """The cells of a page's tables as a reader sees them, their links, and other elements that no text should make."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.others: list[str] = []
        self.in_cell = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self.in_cell = True
        elif self.in_cell and tag == "a":
            self.links.append(dict(attributes)["href"] or "")
        elif self.in_cell and tag not in ("span", "article", "div"):
            self.others.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag != "td"

    def handle_data(self, text: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += text.replace("\u00a0", " ")


def page_of(site: Site, artifact: str) -> tuple[list[list[str]], list[str], list[str]]:
    """The rows of an artifact's table in Chromium, their links, and the other elements in them."""
    if (chromium := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("no Chromium here, in which Prefect's page could be looked at")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    options = [f"--disable-{what}" for what in quiet] + ["--headless", "--no-sandbox", "--no-first-run"]
    address = f"{site.api.removesuffix('/api')}/artifacts/artifact/{artifact}"
    options += [f"--user-data-dir={site.logs / 'chromium'}", "--virtual-time-budget=20000", "--dump-dom"]
    shown = subprocess.run([chromium, *options, address], capture_output=True, text=True, timeout=120, check=True)
    cells = Cells()
    cells.feed(shown.stdout)
    rows = [row for row in cells.rows if row]
    assert rows, shown.stdout[:3000]
    return rows, cells.links, cells.others


def test_cancelled_run_of_the_deployment_takes_its_cluster_with_it(
    site: Site,
    tmp_path: Path,
    dark_folder: Path,
) -> None:
    field = make_slide(UPath(tmp_path / "field"), 1) / "f000.png"
    for slide in range(30):  # long enough to be cancelled in the midst of it
        (tmp_path / "slides" / f"s{slide:02d}").mkdir(parents=True)
        for i in range(50):
            os.link(field.path, tmp_path / "slides" / f"s{slide:02d}" / f"f{i:03d}.png")
    deployment = site.ask(f"deployments/name/{FLOW}")
    asked_for = {"parameters": parameters_of(tmp_path, dark_folder)}
    run = site.ask(f"deployments/{deployment['id']}/create_flow_run", asked_for)
    site.wait_for((tmp_path / "out" / ".wbc" / "pixels").exists)

    started = site.worker.children(recursive=True)
    assert any("multiprocessing" in word for process in started for word in process.cmdline())
    site.call("flow-run", "cancel", run["id"])
    site.wait_for(lambda: site.ask(f"flow_runs/{run['id']}")["state"]["type"] == "CANCELLED")
    assert survivors(started) == []
    assert site.worker.is_running()
    assert len(list((tmp_path / "out" / "slides").glob("s*.parquet"))) < 30
