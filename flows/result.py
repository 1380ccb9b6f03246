"""What trainings came to, as an artifact of their flow run."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact

from flows.slide_table import markdown_text
from wbc.training.orders import Trained


def publish(key: str, results: Sequence[tuple[Trained, str, str]]) -> None:
    """Versions with their figures, each with what the gate said of it, as a result artifact."""
    create_markdown_artifact(
        "\n\n".join(_section(*result) for result in results), key=key, description="Trained models"
    )


def _section(trained: Trained, reference: str, decision: str) -> str:
    rows = [*trained.facts.items(), ("dataset", trained.card.dataset)]
    rows += [(name, f"{value:.4g}") for name, value in trained.card.metrics.items()]
    table = ["| | |", "| --- | --- |", *(f"| {markdown_text(name)} | {markdown_text(text)} |" for name, text in rows)]
    return "\n".join([f"## {markdown_text(reference)}", "", markdown_text(decision), "", *table])
