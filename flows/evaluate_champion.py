"""The evaluate-champion flow: whether the champions still do on frozen slides what they did when they were judged."""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.events import champion_drifted
from flows.slide_table import markdown_text
from wbc import __version__
from wbc.evaluation.drift import Drift, check_drift
from wbc.evaluation.frozen import read_frozen
from wbc.evaluation.gate import GateSettings
from wbc.models.cards import Task
from wbc.models.registry import resolve_device

TASKS: tuple[Task, ...] = ("detector", "classifier")


class ChampionDrifted(RuntimeError):
    """A champion is worse than its version says; the figures are named."""


@flow(name="evaluate-champion", version=__version__, persist_result=False)
def evaluate_champion(frozen: str, data: str = ".", device: str = "auto", most_fall: float = 3.0) -> list[Drift]:
    """Measure both champions on frozen slides again, beside the figures that their versions keep.

    A version that keeps none gets those of now. Raises ChampionDrifted, after the event `wbc.champion.drifted`, where a
    figure fell; ValueError where the slides cannot be read.

    Args:
        frozen: TOML file of the frozen slides, a block for each scanner.
        data: Folder with what it names.
        device: auto, cpu, cuda or cuda:NUMBER.
        most_fall: Points by which a figure may be lower than its version keeps.
    """
    slides, on = read_frozen(Path(frozen), Path(data)), resolve_device(device)
    checked = [check_drift(task, slides, on, GateSettings(most_fall=most_fall)) for task in TASKS]
    drifts = [drift for drift in checked if drift is not None]
    _publish(drifts)
    reasons = [_told(drift) for drift in drifts if drift.drifted]
    if reasons:
        raise ChampionDrifted("; ".join(reasons))
    return drifts


def _publish(drifts: list[Drift]) -> None:
    """Every figure then and now, as the flow run's table artifact."""
    rows = [
        {
            "version": markdown_text(drift.reference),
            "figure": markdown_text(row.figure),
            "kept": f"{row.kept:.4f}",
            "now": f"{row.now:.4f}",
            "": "drifted" if row.drifted else "",
        }
        for drift in drifts
        for row in drift.rows
    ]
    create_table_artifact(rows, key="evaluate-champion", description="The champions' figures on frozen slides")
    for drift in drifts:
        if drift.is_first:
            get_run_logger().info("%s kept no figures of these slides: those of now are kept", drift.reference)
        if not drift.same_slides:
            get_run_logger().warning("%s keeps figures of other slides than these", drift.reference)


def _told(drift: Drift) -> str:
    """What drifted, in words; Prefect is told too."""
    figures = {row.figure: [row.kept, row.now] for row in drift.drifted}
    reason = champion_drifted(drift.reference, figures)
    if reason is not None:
        get_run_logger().warning("the event could not be sent: %s", reason)
    words = (f"{name} fell from {kept:.4f} to {now:.4f}" for name, (kept, now) in figures.items())
    return f"{drift.reference}: {', '.join(words)}"
