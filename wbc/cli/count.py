"""`wbc count`: the count-slides flow, run in this process."""

import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wbc.cli.options import AsJson, CountConfig, given_options, with_count_options
from wbc.cli.sources import parameters, settings
from wbc.cli.terminal import INTERRUPTED, print_count, stopping_soon, usage_errors, warnings_on
from wbc.counting.parameters import CountParameters

if TYPE_CHECKING:
    from rich.console import Console

    from wbc.counting.remarks import CountReport


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
            report = _count(asked, verbose)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    print_count(report, asked.out, as_json)


def _count(asked: CountParameters, verbose: bool) -> "CountReport":
    """What becomes of every slide: known from the tables where they all stand already, else by running the flow."""
    from rich.console import Console

    console = Console(stderr=True)
    with warnings_on(console):
        standing = _standing(asked, console)
        return standing if standing is not None else _run_flow(asked, console, verbose)


def _standing(asked: CountParameters, console: "Console") -> "CountReport | None":
    """The report where no slide needs anything, made and told without what takes long to import."""
    from flows.cluster import prepare, settings_of
    from wbc.cli.progress import LogLines
    from wbc.counting.remarks import CountReport, remarks_on
    from wbc.counting.standing import request_of, standing_outcomes, writing

    cluster, request = settings_of(asked), request_of(asked)
    with writing(request.job):
        outcomes = standing_outcomes(request)
    if outcomes is None:
        prepare(cluster, request.models)
        return None
    lines = LogLines(console)
    lines.slides_found(len(request.slides), sum(len(slide.field_paths) for slide in request.slides))
    for outcome in outcomes:
        lines.slide_done(outcome)
    return CountReport(outcomes, remarks_on(request.survey, request.job.out))


def _prepare_prefect(verbose: bool) -> None:
    """Settings that Prefect reads when it is imported; what the user has set stands."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # Its private server takes 15 s to start on a small machine, and several times that on a busy one.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


def _run_flow(asked: CountParameters, console: "Console", verbose: bool) -> "CountReport":
    _prepare_prefect(verbose)
    from flows.listening import listening
    from flows.private_server import private_server
    from wbc.cli.progress import LogLines, ProgressBar

    with ExitStack() as stack:
        with console.status("loading") if console.is_terminal else nullcontext():
            count_slides = stack.enter_context(private_server(meanwhile=_load_flow))
        is_bar = console.is_terminal and not verbose
        listener = stack.enter_context(ProgressBar(console)) if is_bar else LogLines(console)
        stack.enter_context(listening(listener))
        report: CountReport = count_slides(**asdict(asked))
    return report


def _load_flow() -> Callable[..., Any]:
    from flows.count_slides import count_slides

    return count_slides
