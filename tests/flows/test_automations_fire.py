"""The automations of deployments/automations.yaml on a real server: each fires, and only where it ought to."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect_servers import asked, own_prefect_server
from registries import free_port

pytestmark = pytest.mark.timeout(600)
AUTOMATIONS = Path(__file__).parents[2] / "deployments" / "automations.yaml"
CHAMPION = {"prefect.resource.id": "wbc.model.wbc-detector"}
SECONDS = 200


def test_bad_nights_silent_ones_and_drift_are_told(tmp_path: Path) -> None:
    soon = AUTOMATIONS.read_text().replace("within: 90000", "within: 10")  # nobody waits here for 25 hours
    assert soon != AUTOMATIONS.read_text()
    (tmp_path / "automations.yaml").write_text(soon)
    with own_prefect_server(tmp_path, free_port()) as api:
        words = ["automation", "create", "--from-file", str(tmp_path / "automations.yaml")]
        own = os.environ | {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "client")}
        subprocess.run([sys.executable, "-m", "prefect", *words], env=own, check=True)
        names = {automation["id"]: automation["name"] for automation in asked(f"{api}/automations/filter", {})}
        assert set(names.values()) == {automation["name"] for automation in yaml.safe_load(soon)["automations"]}

        night(api, "count-slides", {"type": "COMPLETED", "name": "CompletedWithFailures"})
        night(api, "retrain", {"type": "FAILED", "name": "Failed"})  # another flow's
        wait_for(lambda: "wbc-some-slides-failed" in fired(api, names))
        wait_for(lambda: "wbc-no-count-last-night" in fired(api, names))
        assert fired(api, names) == {"wbc-some-slides-failed", "wbc-no-count-last-night"}
        night(api, "count-slides", {"type": "CRASHED", "name": "Crashed"})
        drift = {"occurred": datetime.now(UTC).isoformat(), "event": "wbc.champion.drifted", "resource": CHAMPION}
        asked(f"{api}/events", [drift | {"id": str(uuid4()), "payload": {}}])
        wait_for(lambda: fired(api, names) == set(names.values()))


def night(api: str, flow: str, state: dict[str, str]) -> None:
    """A run of a flow that comes to its end."""
    found = asked(f"{api}/flows/", {"name": flow})["id"]
    run = asked(f"{api}/flow_runs/", {"flow_id": found, "state": {"type": "PENDING"}})["id"]
    asked(f"{api}/flow_runs/{run}/set_state", {"state": state, "force": True})


def fired(api: str, names: dict[str, str]) -> set[str]:
    """The automations, by name, that have come to pass."""
    wanted = {"filter": {"event": {"name": ["prefect.automation.action.executed"]}}, "limit": 50}
    events = asked(f"{api}/events/filter", wanted)["events"]
    ids = {event["resource"]["prefect.resource.id"].removeprefix("prefect.automation.") for event in events}
    return {names[one] for one in ids & set(names)}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)
