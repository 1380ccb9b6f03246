"""`wbc count`: the count-slides flow, run in this process."""

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wbc.cli.options import AsJson, Device, positive
from wbc.cli.terminal import INTERRUPTED, print_count, stopping_soon, usage_errors, warnings_on

if TYPE_CHECKING:
    from flows.count_slides import CountReport


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
        float | None, typer.Option(callback=positive, help="Scale of all slides; else metadata or red cells tell it.")
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

    from wbc.storage.layout import Layout
    from wbc.taxonomy import load_taxonomy

    if not UPath(slides).is_dir():
        raise ValueError(f"no such folder of slides: {slides}")
    Layout(UPath(out)).check_apart(UPath(slides))
    load_taxonomy(taxonomy)


def _run_count(parameters: dict[str, Any], verbose: bool) -> "CountReport":
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("loading") if console.is_terminal else nullcontext():
        from flows.count_slides import count_slides
        from flows.listening import listening
        from flows.private_server import start_private_server
        from wbc.cli.progress import LogLines, ProgressBar

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
