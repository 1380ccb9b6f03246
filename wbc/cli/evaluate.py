"""`wbc evaluate`: what a model is worth on labelled cells."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wbc.cli.options import AsJson, Device
from wbc.cli.rows import print_rows
from wbc.cli.terminal import print_remarks, usage_errors

if TYPE_CHECKING:
    from wbc.evaluation.report import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="bundled:NAME, a model's folder, or models:/NAME@ALIAS.")],
    dataset: Annotated[
        Path, typer.Argument(exists=True, help="TOML file with [[data]] or [[measure]] blocks, or annotations.")
    ],
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder with what a TOML names.")] = Path(),
    images: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Pictures of annotations; default: beside them.")
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for figures, tables and pictures.")] = Path(
        "evaluation"
    ),
    partner: Annotated[
        str | None, typer.Option("--with", help="Model of the other task, for differentials; default: the bundled one.")
    ] = None,
    taxonomy: Annotated[str, typer.Option(help="Whose cell types annotations are labelled by.")] = "blood",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Detections as sure as this are cells.")] = 0.7,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a model on labelled cells: COCO's figures, kinds, confusion, calibration, differentials; by data set."""
    with usage_errors():
        from wbc.evaluation.files import write_evaluation
        from wbc.evaluation.frozen import read_frozen
        from wbc.evaluation.report import EvaluationSettings
        from wbc.evaluation.report import evaluate as measure
        from wbc.models.registry import read_card, resolve_device
        from wbc.models.versions import bundled_of

        frozen = read_frozen(dataset, data, taxonomy, images)
        other = partner or bundled_of("classifier" if read_card(model).task == "detector" else "detector")
        settings = EvaluationSettings(min_score, other)
        evaluation = measure(model, frozen, resolve_device(device), settings)
        write_evaluation(evaluation, out)
    if as_json:
        typer.echo(json.dumps(evaluation.to_json(), indent=1))
    else:
        _print(evaluation)
        typer.echo(f"figures, tables and pictures in {out}")
    print_remarks([], evaluation.remarks)


def _print(evaluation: "Evaluation") -> None:
    for name, figures in evaluation.figures.items():
        bounds = evaluation.limits.get(name, {})
        rows = []
        for figure, value in figures.items():
            low, high = bounds.get(figure, (None, None))
            rows.append((figure, f"{value:.4f}", "" if low is None else f"{low:.4f} – {high:.4f}"))
        print_rows((name, "", "95 % limits"), rows)
    for table in evaluation.tables.values():
        print_rows(tuple(table.columns), [tuple(map(_cell, row)) for row in table.to_numpy().tolist()])


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
