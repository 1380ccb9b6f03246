"""Prefect's private server, for when no other is set; a terminal's Ctrl-C does not reach it."""

import signal
from contextlib import suppress
from threading import Thread

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


def start_private_server() -> None:
    """Start the server that a flow of this process would start; it ends with the process.

    A Ctrl-C then ends the flow alone, which can still tell the server so. Were the server gone too, the flow would wait
    minutes for its answer.
    """
    settings = get_current_settings()
    if settings.api.url is None and settings.server.ephemeral.enabled:
        thread = Thread(target=_start_out_of_reach, daemon=True)
        thread.start()
        thread.join()


def _start_out_of_reach() -> None:
    # A process inherits the signal mask of the thread that starts it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with suppress(Exception):  # the flow tries again, and tells why it does not start
        SubprocessASGIServer().start()
