"""A challenger before the gate: judged, the decision kept on its version, and its place taken if it is the better."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from wbc.evaluation.frozen import Frozen
from wbc.evaluation.gate import ALL_SETS, Decision, GateSettings, judge, main_name, sensitivity_name
from wbc.models import tracking, versions
from wbc.models.cards import ModelError, ModelRef, Task
from wbc.models.versions import CHALLENGER, DECISION, NAMES, StoredVersion

FILE = "decision.json"


def decide(challenger: str, frozen: Frozen, device: str, settings: GateSettings = GateSettings()) -> Decision:
    """Judge a version, `models:/NAME/NUMBER` or by alias, and make it the champion if it is the better.

    Its opponent is the champion; where there is none yet, the model that comes with wbc. The decision, with both
    columns of figures, stays on the version: in its tag `decision` in short, in full as decision.json of its run.
    Raises as `judge` does, and ModelError where the registry fails, or where another has become champion meanwhile;
    then nothing is promoted.
    """
    version = versions.version_of(challenger)
    task = next(task for task, name in NAMES.items() if name == version.name)
    versions.set_alias(version.name, CHALLENGER, version.number)
    champion = versions.champion_or_bundled(task)
    decision = judge(champion, version.reference, frozen, device, settings)
    keep_decision(version, decision)
    if decision.promoted:
        _check_still(champion, task, version)
        versions.promote(version.reference)
    return decision


def _check_still(champion: str, task: Task, version: StoredVersion) -> None:
    """Raises ModelError where another than the one that was judged is the champion now."""
    now = versions.champion_or_bundled(task)
    if now != champion:
        raise ModelError(
            f"{version.reference} was judged beside {champion}, but {now} is the champion now: judge again"
        )


def keep_decision(version: StoredVersion, decision: Decision) -> None:
    """Write a decision on its version, with both columns of figures."""
    with TemporaryDirectory() as folder:
        path = Path(folder, FILE)
        path.write_text(json.dumps(decision.to_json(), indent=1))
        if version.run_id:
            tracking.keep_files(version.run_id, [path], "gate")
    short = {
        "promoted": decision.promoted,
        "main": decision.main,
        "champion": _words(decision.champion),
        "champion_main": decision.champion_main[ALL_SETS],
        "challenger_main": decision.challenger_main[ALL_SETS],
        "gain_low": decision.gain_low,
        "gain_high": decision.gain_high,
        "fell": [f"{row.kind} of {row.set}" for row in decision.kinds if row.verdict == "fell"],
        "frozen": decision.frozen,
    }
    figures = {main_name(decision.main, name): value for name, value in decision.challenger_main.items()}
    figures |= {sensitivity_name(row.set, row.kind): row.challenger / 100 for row in decision.kinds}
    if version.run_id:
        tracking.log_figures(version.run_id, figures)
    tracking.tag_version(version, {DECISION: json.dumps(short), "frozen": decision.frozen})


def _words(ref: ModelRef) -> str:
    return f"{ref.reference}@{ref.digest[:12]}"
