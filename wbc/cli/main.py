"""The `wbc` command: every verb is one call into the library or a flow."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wbc import __version__
from wbc.cli.terminal import (
    INTERRUPTED,
    print_count,
    print_json,
    print_tables,
    stopping_soon,
    usage_errors,
    warnings_on,
)

if TYPE_CHECKING:
    from flows.count_slides import CountReport

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
train = typer.Typer(no_args_is_help=True)
app.add_typer(train, name="train", help="Train a model as a config says; run again, it goes on from its checkpoint.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _wbc(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Differential counts of white blood cells from folders of microscope fields."""


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise typer.BadParameter(f"{value!r} is not auto, cpu, cuda or cuda:NUMBER")
    return value


def _positive(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value} is not a positive number")
    return value


Device = Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda or cuda:NUMBER.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]
Config = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="TOML file: classes, model, data, steps.")]
Data = Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of the data sets that CONFIG names.")]
ModelOut = Annotated[Path, typer.Option(file_okay=False, help="Folder of the trained model and its checkpoint.")]


@app.command()
def count(
    slides: Annotated[str, typer.Argument(help="Folder of slide folders: a path or an fsspec address.")],
    out: Annotated[str, typer.Option(help="Where the tables go: a path or an fsspec address.")],
    detector: Annotated[
        str, typer.Option(help="bundled:NAME, a model's folder, or models:/NAME@ALIAS.")
    ] = "bundled:detector",
    classifier: Annotated[
        str, typer.Option(help="As --detector; `none` to leave white cells unnamed.")
    ] = "bundled:classifier",
    taxonomy: Annotated[str, typer.Option(help="blood, marrow_icsh, wang2021, asae2020, or a TOML file.")] = "blood",
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Cells that the detector is less sure of are left out.")
    ] = 0.7,
    um_per_px: Annotated[
        float | None, typer.Option(callback=_positive, help="Scale of all slides; else metadata or red cells tell it.")
    ] = None,
    device: Device = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes on this machine; default: its size.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a running Dask cluster, as tcp://host:8786.")
    ] = None,
    settings: Annotated[str | None, typer.Option(help="TOML file that says which cluster to start.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Count again what is counted.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Digest every field again; do not trust size and time.")
    ] = False,
    keep_pixels: Annotated[
        bool, typer.Option("--keep-pixels", help="Keep the fields' pixels as Zarr in OUT/pixels.")
    ] = False,
    annotate: Annotated[bool, typer.Option("--annotate", help="Draw the cells found into OUT/annotated.")] = False,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the logs of the flow and its cluster.")
    ] = False,
) -> None:
    """Count every slide below SLIDES and write the tables to OUT; what has not changed is not counted again."""
    _prepare_prefect(verbose)
    parameters = {
        "slides": slides,
        "out": out,
        "detector": detector,
        "classifier": None if classifier == "none" else classifier,
        "taxonomy": taxonomy,
        "min_score": min_score,
        "um_per_px": um_per_px,
        "device": device,
        "workers": workers,
        "scheduler": scheduler,
        "settings": settings,
        "force": force,
        "verify": verify,
        "keep_pixels": keep_pixels,
        "annotate": annotate,
    }
    try:
        with usage_errors(), stopping_soon():
            _check_early(slides, out, taxonomy)
            report = _run_count(parameters, verbose)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print_count(report.outcomes, out, as_json)


def _prepare_prefect(verbose: bool) -> None:
    """Settings that Prefect reads when it is imported; what the user has set stands."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Its private server takes 15 s to start on a small machine, and several times that on a busy one.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def _check_early(slides: str, out: str, taxonomy: str) -> None:
    """Raises ValueError for the likeliest slips, before a count's libraries are loaded, which takes long."""
    from upath import UPath

    from wbc.storage.results import check_apart
    from wbc.taxonomy import load_taxonomy

    if not UPath(slides).is_dir():
        raise ValueError(f"no such folder of slides: {slides}")
    check_apart(UPath(slides), UPath(out))
    load_taxonomy(taxonomy)


def _run_count(parameters: dict[str, Any], verbose: bool) -> "CountReport":
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading") if console.is_terminal else nullcontext():
        from flows.count_slides import count_slides
        from flows.listening import listening
        from flows.private_server import start_private_server
        from wbc.counting.report import LogLines, ProgressBar

        start_private_server()
    if verbose:
        with listening(LogLines(console)):
            report: CountReport = count_slides(**parameters)
    elif console.is_terminal:
        with warnings_on(console), ProgressBar(console) as bar, listening(bar):
            report = count_slides(**parameters)
    else:
        with warnings_on(console), listening(LogLines(console)):
            report = count_slides(**parameters)
    return report


@app.command()
def show(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    slide: Annotated[str | None, typer.Argument(help="The slide_id of one slide; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the differentials in OUT again."""
    with usage_errors():
        from upath import UPath

        from wbc.counting.report import counted_slides, read_report, report_json

        known = counted_slides(UPath(out))
        if not known:
            raise ValueError(f"{out}: no slide was counted here")
        if slide is not None and slide not in known:
            raise ValueError(
                f"{out}: no count of slide {slide!r}; there are {', '.join(known[:10])}{' …'[: len(known) // 5]}"
            )
        reports = [read_report(UPath(out), slide_id) for slide_id in ([slide] if slide else known)]
    if as_json:
        print_json(out, [report_json(report) for report in reports])
    else:
        print_tables(reports)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder to render into.")],
    slides: Annotated[int, typer.Option(min=1, help="How many slides.")] = 2,
    fields: Annotated[int, typer.Option(min=1, help="How many fields a slide.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed renders the same bytes.")] = 0,
) -> None:
    """Render smears with exact truth beside them (COCO JSON): something to count without a microscope."""
    with usage_errors():
        from wbc.synth.smear import render_slides

        truth = render_slides(out, slides, fields, seed)
    typer.echo(f"{slides} slides of {fields} fields in {out}, what is in them in {truth}")


@train.command("detector")
def train_detector(config: Config, data: Data, out: ModelOut, device: Device = "auto") -> None:
    """Train a detector: boxes of cells from whole fields."""
    with _training():
        from wbc.models.registry import resolve_device
        from wbc.training import recipes

        card = recipes.train_detector(config, data, out, resolve_device(device))
    _print_trained(out, card.metrics)


@train.command("classifier")
def train_classifier(config: Config, data: Data, out: ModelOut, device: Device = "auto") -> None:
    """Train a classifier: the kind of a white cell from its crop."""
    with _training():
        from wbc.models.registry import resolve_device
        from wbc.training import recipes

        card = recipes.train_classifier(config, data, out, resolve_device(device))
    _print_trained(out, card.metrics)


@contextmanager
def _training() -> Iterator[None]:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        with usage_errors():
            yield
    except KeyboardInterrupt:
        typer.echo("wbc: interrupted; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _print_trained(out: Path, metrics: dict[str, float]) -> None:
    typer.echo(f"model in {out}")
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:g}")
