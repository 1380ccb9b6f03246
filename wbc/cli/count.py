"""`wbc count`: the count-slides flow, run in this process."""

import os
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wbc.cli.options import AsJson, CountConfig, given_options, with_count_options
from wbc.cli.sources import parameters, settings
from wbc.cli.terminal import INTERRUPTED, print_count, stopping_soon, usage_errors, warnings_on
from wbc.counting.parameters import CountParameters

if TYPE_CHECKING:
    from flows.count_slides import CountReport


@with_count_options
def count(
    context: typer.Context,
    config: CountConfig = None,
    as_json: AsJson = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the logs of the flow and its cluster.")
    ] = False,
    **_: Any,
) -> None:
    """Count every slide below SLIDES and write the tables to OUT; what has not changed is not counted again.

    Any option may also come from a variable, as --min-score from WBC_MIN_SCORE, or from a file named with --config.
    The command line comes first, then variables, then the file.
    """
    try:
        with usage_errors(), stopping_soon():
            asked = parameters(settings(given_options(context), os.environ, config))
            _prepare_prefect(verbose)
            _check_early(asked)
            report = _run_count(asked, verbose)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print_count(report, asked.out, as_json)


def _prepare_prefect(verbose: bool) -> None:
    """Settings that Prefect reads when it is imported; what the user has set stands."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Its private server takes 15 s to start on a small machine, and several times that on a busy one.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def _check_early(asked: CountParameters) -> None:
    """Raises ValueError for the likeliest slips, before a count's libraries are loaded, which takes long."""
    from upath import UPath

    from wbc.storage.layout import Layout
    from wbc.storage.lock import check_free
    from wbc.taxonomy import load_taxonomy

    if not UPath(asked.slides).is_dir():
        raise ValueError(f"no such folder of slides: {asked.slides}")
    Layout(UPath(asked.out)).check_apart(UPath(asked.slides))
    check_free(UPath(asked.out))
    load_taxonomy(asked.taxonomy)


def _run_count(asked: CountParameters, verbose: bool) -> "CountReport":
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
            report: CountReport = count_slides(**asdict(asked))
    elif console.is_terminal:
        with warnings_on(console), ProgressBar(console) as bar, listening(bar):
            report = count_slides(**asdict(asked))
    else:
        with warnings_on(console), listening(LogLines(console)):
            report = count_slides(**asdict(asked))
    return report
