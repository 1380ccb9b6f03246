"""The automations that a laboratory copies: Prefect takes them, and they watch the flow that the deployment runs."""

from pathlib import Path

import yaml
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from flows.count_slides import count_slides
from flows.events import CHAMPION_DRIFTED

AUTOMATIONS = Path(__file__).parents[2] / "deployments" / "automations.yaml"


def test_each_ending_of_a_night_has_an_automation_that_prefect_takes() -> None:
    written = yaml.safe_load(AUTOMATIONS.read_text())["automations"]
    triggers = {one.name: one.trigger for one in map(AutomationCore.model_validate, written)}
    assert isinstance(drift := triggers.pop("wbc-champion-drifted"), EventTrigger)
    assert drift.expect == {CHAMPION_DRIFTED}
    assert set(triggers) == {"wbc-some-slides-failed", "wbc-nothing-counted", "wbc-no-count-last-night"}
    for trigger in triggers.values():
        assert isinstance(trigger, EventTrigger)
        assert trigger.match_related.model_dump()["prefect.resource.name"] == count_slides.name  # type: ignore[union-attr]
    silence = triggers["wbc-no-count-last-night"]
    assert isinstance(silence, EventTrigger)
    assert (silence.posture, silence.within.total_seconds()) == (Posture.Proactive, 25 * 3600)
