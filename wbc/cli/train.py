"""`wbc train`: models made as a config says."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from wbc.cli.options import Device
from wbc.cli.terminal import INTERRUPTED, usage_errors

Config = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="TOML file: classes, model, data, steps.")]
Data = Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder with the data sets that CONFIG names.")]
ModelOut = Annotated[Path, typer.Option(file_okay=False, help="Folder for the trained model and its checkpoint.")]

Processes = Annotated[int, typer.Option(min=0, help="Processes that train together; 0: one for each GPU.")]

app = typer.Typer(no_args_is_help=True)


@app.command("detector")
def train_detector(
    config: Config, data: Data, out: ModelOut, device: Device = "auto", processes: Processes = 0
) -> None:
    """Train a detector: boxes of cells from whole fields."""
    with _training():
        from wbc.models.registry import resolve_device
        from wbc.training import detector

        card = detector.train_detector(config, data, out, resolve_device(device), processes)
    _print_trained(out, card.metrics)


@app.command("classifier")
def train_classifier(
    config: Config, data: Data, out: ModelOut, device: Device = "auto", processes: Processes = 0
) -> None:
    """Train a classifier: the type of a white cell from its crop."""
    with _training():
        from wbc.models.registry import resolve_device
        from wbc.training import classifier

        card = classifier.train_classifier(config, data, out, resolve_device(device), processes)
    _print_trained(out, card.metrics)


@contextmanager
def _training() -> Iterator[None]:
    try:
        with usage_errors(), training_progress():
            yield
    except KeyboardInterrupt:
        typer.echo("wbc: interrupted; run the same command again to carry on from the last checkpoint", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def training_progress() -> Iterator[None]:
    """A bar at a terminal; in a log, a line for each checkpoint."""
    if not sys.stderr.isatty():
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        yield
        return
    from wbc.cli.training_progress import TrainingBar
    from wbc.training.progress import watching

    with TrainingBar() as bar, watching(bar):
        yield


def _print_trained(out: Path, metrics: dict[str, float]) -> None:
    typer.echo(f"model in {out}")
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:g}")
