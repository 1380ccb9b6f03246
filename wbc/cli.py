"""The `wbc` command: every verb is one call into the library or a flow."""

import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wbc import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from flows.count_slides import CountReport
    from wbc.report import SlideReport

# Exit statuses beside 0.
WRONG_USAGE, NOT_ALL_COUNTED, INTERRUPTED = 2, 3, 130
STOP_SECONDS = 15.0

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
        with _usage_errors(), _stopping_soon():
            _check_early(slides, taxonomy)
            report = _run_count(parameters, verbose)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    _print_count(report, out, as_json)


def _prepare_prefect(verbose: bool) -> None:
    """Settings that Prefect reads when it is imported; what the user has set stands."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Its private server takes 15 s to start on a small machine, and several times that on a busy one.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


@contextmanager
def _stopping_soon() -> Iterator[None]:
    """Within, Ctrl-C ends the process when the cluster is closed, and after STOP_SECONDS at the latest.

    It ends Prefect's private server too, for whose answer Prefect would wait for minutes.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        typer.echo("wbc: interrupted; the same command goes on where this one stopped", err=True)
        last = threading.Timer(STOP_SECONDS, os._exit, [INTERRUPTED])
        last.daemon = True
        last.start()
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_early(slides: str, taxonomy: str) -> None:
    """Raises ValueError for the likeliest slips, before a count's libraries are loaded, which takes long."""
    from upath import UPath

    from wbc.taxonomy import load_taxonomy

    if not UPath(slides).is_dir():
        raise ValueError(f"no such folder of slides: {slides}")
    load_taxonomy(taxonomy)


def _run_count(parameters: dict[str, Any], verbose: bool) -> "CountReport":
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading") if console.is_terminal else nullcontext():
        from flows.count_slides import count_slides
        from flows.listening import listening
        from wbc.report import LogLines, ProgressBar

    if verbose:
        with listening(LogLines(console)):
            report: CountReport = count_slides(**parameters)
    elif console.is_terminal:
        with _warnings_on(console), ProgressBar(console) as bar, listening(bar):
            report = count_slides(**parameters)
    else:
        with _warnings_on(console), listening(LogLines(console)):
            report = count_slides(**parameters)
    return report


@contextmanager
def _warnings_on(console: "Console") -> Iterator[None]:
    """Within, what wbc warns of is a line on the console: Prefect's handler, which is silenced, would have shown it."""
    from rich.text import Text

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(Text(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow"), soft_wrap=True)

    logger, lines = logging.getLogger("wbc"), Lines(logging.WARNING)
    logger.addHandler(lines)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.propagate = True


def _print_count(report: "CountReport", out: str, as_json: bool) -> None:
    from upath import UPath

    from wbc.report import failures, outcome_json, read_report

    counted = {o.slide_id: read_report(UPath(out), o.slide_id) for o in report.outcomes if o.status != "failed"}
    if as_json:
        _print_json(out, [outcome_json(o, counted.get(o.slide_id)) for o in report.outcomes])
    else:
        _print_tables(list(counted.values()))
    missing = [line for outcome in report.outcomes for line in failures(outcome)]
    for line in missing:
        typer.echo(line, err=True)
    if missing:
        raise typer.Exit(NOT_ALL_COUNTED)


def _print_json(out: str, slides: list[dict[str, Any]]) -> None:
    typer.echo(json.dumps({"out": out, "slides": slides}, indent=1, ensure_ascii=False, allow_nan=False))


def _print_tables(reports: "list[SlideReport]") -> None:
    from rich.console import Console

    from wbc.report import report_table

    # A log or a pipe has no width to wrap at.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for report in reports:
        console.print(report_table(report))


@app.command()
def show(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    slide: Annotated[str | None, typer.Argument(help="The slide_id of one slide; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the differentials in OUT again."""
    with _usage_errors():
        from upath import UPath

        from wbc.report import counted_slides, read_report, report_json

        known = counted_slides(UPath(out))
        if not known:
            raise ValueError(f"{out}: no slide was counted here")
        if slide is not None and slide not in known:
            raise ValueError(
                f"{out}: no count of slide {slide!r}; there are {', '.join(known[:10])}{' …'[: len(known) // 5]}"
            )
        reports = [read_report(UPath(out), slide_id) for slide_id in ([slide] if slide else known)]
    if as_json:
        _print_json(out, [report_json(report) for report in reports])
    else:
        _print_tables(reports)


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder to render into.")],
    slides: Annotated[int, typer.Option(min=1, help="How many slides.")] = 2,
    fields: Annotated[int, typer.Option(min=1, help="How many fields a slide.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed renders the same bytes.")] = 0,
) -> None:
    """Render smears with exact truth beside them (COCO JSON): something to count without a microscope."""
    with _usage_errors():
        from wbc.synth import render_slides

        truth = render_slides(out, slides, fields, seed)
    typer.echo(f"{slides} slides of {fields} fields in {out}, what is in them in {truth}")


@train.command("detector")
def train_detector(config: Config, data: Data, out: ModelOut, device: Device = "auto") -> None:
    """Train a detector: boxes of cells from whole fields."""
    with _training():
        from wbc.pipeline import resolve_device
        from wbc.training import recipes

        card = recipes.train_detector(config, data, out, resolve_device(device))
    _print_trained(out, card.metrics)


@train.command("classifier")
def train_classifier(config: Config, data: Data, out: ModelOut, device: Device = "auto") -> None:
    """Train a classifier: the kind of a white cell from its crop."""
    with _training():
        from wbc.pipeline import resolve_device
        from wbc.training import recipes

        card = recipes.train_classifier(config, data, out, resolve_device(device))
    _print_trained(out, card.metrics)


@contextmanager
def _training() -> Iterator[None]:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        with _usage_errors():
            yield
    except KeyboardInterrupt:
        typer.echo("wbc: interrupted; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _print_trained(out: Path, metrics: dict[str, float]) -> None:
    typer.echo(f"model in {out}")
    for name, value in metrics.items():
        typer.echo(f"{name}: {value:g}")


@contextmanager
def _usage_errors() -> Iterator[None]:
    """What the user's words or files made impossible becomes one line and exit status 2."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
        _refuse(reason, error)
    except (ValueError, ImportError) as error:
        _refuse(str(error), error)


def _refuse(reason: str, error: Exception) -> None:
    typer.echo(f"wbc: {' '.join(reason.split())}", err=True)
    raise typer.Exit(WRONG_USAGE) from error
