"""What MLflow's page shows of a version before anything is clicked: its description, in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from wbc.models.cards import ModelCard


def describe(card: ModelCard, metrics: Mapping[str, float], files: Sequence[Path], run_id: str) -> str:
    """What a model finds or names, those of the run's files that are pictures, and its figures as a table."""
    size = f", crops of {card.input_px} px" if card.input_px else ""
    lines = [f"A {card.task} of {', '.join(card.classes)}, at {card.um_per_px:g} µm per px{size}."]
    if card.credits:
        lines.append("Learnt from: " + "; ".join(card.credits) + ".")
    pictures = [file.name for file in files if file.suffix == ".png"]
    lines += [f"![{name}](get-artifact?path={name}&run_uuid={run_id})" for name in pictures]
    if metrics:  # last: what is too long for MLflow is cut off
        rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
        lines.append("\n".join(["| figure | value |", "|---|---:|", *rows]))
    return "\n\n".join(lines)
