"""Prefect's private server, which stands in where no other is set, out of reach of a terminal's Ctrl-C."""

import signal
from contextlib import suppress
from threading import Thread

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


def start_private_server() -> None:
    """Start it now, where a flow of this process would; it ends with the process.

    A Ctrl-C then ends the flow alone, which can still tell the server so, where it would wait minutes for the answer
    of one that is gone.
    """
    settings = get_current_settings()
    if settings.api.url is None and settings.server.ephemeral.enabled:
        thread = Thread(target=_start_deaf_to_ctrl_c, daemon=True)
        thread.start()
        thread.join()


def _start_deaf_to_ctrl_c() -> None:
    # A process inherits the signal mask of the thread that starts it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    with suppress(Exception):  # the flow starts it again, and tells why it does not start
        SubprocessASGIServer().start()
