"""How a verb speaks and ends: tables or JSON on the terminal, warnings, wrong usage, Ctrl-C, exit statuses."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import typer

from wbc.storage.stores import is_from_a_store

if TYPE_CHECKING:
    from rich.console import Console

    from wbc.counting.remarks import CountReport
    from wbc.counting.report import SlideReport

# Exit statuses beside 0.
WRONG_USAGE, NOT_ALL_COUNTED, INTERRUPTED = 2, 3, 130
STOP_SECONDS = 15.0


@contextmanager
def usage_errors() -> Iterator[None]:
    """What the user's words or files made impossible becomes one line and exit status 2."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
        _refuse(reason, error)
    except (ValueError, ImportError) as error:
        _refuse(str(error), error)
    except Exception as error:
        if not is_from_a_store(error):
            raise
        _refuse(str(error), error)


def _refuse(reason: str, error: Exception) -> None:
    typer.echo(f"wbc: {' '.join(reason.split())}", err=True)
    raise typer.Exit(WRONG_USAGE) from error


def login() -> str:
    """Who is at the terminal."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name
        return "unknown"


@contextmanager
def stopping_soon() -> Iterator[None]:
    """Within, Ctrl-C or SIGTERM ends the process when the cluster is closed, and after STOP_SECONDS at the latest.

    SIGTERM by itself would leave Prefect's private server behind.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        typer.echo("wbc: interrupted; run the same command again to carry on", err=True)
        last = threading.Timer(STOP_SECONDS, _end_now)
        last.daemon = True
        last.start()
        signal.default_int_handler(number, frame)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_now() -> None:
    import psutil  # type: ignore[import-untyped]

    for child in psutil.Process().children(recursive=True):  # they do not hear a Ctrl-C
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(INTERRUPTED)


@contextmanager
def warnings_on(console: "Console") -> Iterator[None]:
    """Within, what wbc warns of is a line on the console, once: Prefect's handler, where it is not silenced, is spared.

    A count that finds something to do looks at the slides twice, and would warn twice.
    """
    from rich.text import Text

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = f"{record.levelname.lower()}: {record.getMessage()}"
            if line not in told:
                told.add(line)
                console.print(Text(line, style="yellow"), soft_wrap=True)

    told: set[str] = set()
    logger, lines = logging.getLogger("wbc"), Lines(logging.WARNING)
    logger.addHandler(lines)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.propagate = True


def print_count(report: "CountReport", out: str, as_json: bool) -> None:
    """What a count into `out` found, on stdout; remarks and what failed, a line each, on stderr.

    Exit status 3 where something failed.
    """
    from upath import UPath

    from wbc.cli.tables import failures
    from wbc.counting.report import outcome_json, read_reports

    outcomes, remarks = report.outcomes, report.remarks
    reports, broken = read_reports(UPath(out), [o.slide_id for o in outcomes if o.status != "failed"])
    if as_json:
        print_json(out, [outcome_json(o, reports.get(o.slide_id)) for o in outcomes], **remarks.as_json())
    else:
        print_tables(list(reports.values()))
    print_remarks(remarks.warnings(), remarks.notes())
    unreadable = [f"{slide_id}: {reason}" for slide_id, reason in broken.items()]
    print_missing([line for outcome in outcomes for line in failures(outcome)] + unreadable)


def print_missing(lines: Iterable[str]) -> None:
    """What is missing from a count, a line each, on stderr; exit status 3 where there is any."""
    gaps = list(lines)
    for line in gaps:
        typer.echo(line, err=True)
    if gaps:
        raise typer.Exit(NOT_ALL_COUNTED)


def print_remarks(warnings: Iterable[str], notes: Iterable[str] = ()) -> None:
    """What a person should know beside the counts, a line each, on stderr; warnings last, where they are seen."""
    for line in notes:
        typer.secho(line, dim=True, err=True)
    for line in warnings:
        typer.secho(f"warning: {line}", fg="yellow", err=True)


def print_json(out: str, slides: Sequence[dict[str, Any]], **remarks: Any) -> None:
    """The slides in `out`, and what is to be remarked on, as one JSON object."""
    typer.echo(json.dumps({"out": out, "slides": slides} | remarks, indent=1, ensure_ascii=False, allow_nan=False))


def print_tables(reports: "Sequence[SlideReport]") -> None:
    """The differential of each slide."""
    from rich.console import Console

    from wbc.cli.tables import report_table

    # A log or a pipe has no width to wrap at.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for report in reports:
        console.print(report_table(report))
