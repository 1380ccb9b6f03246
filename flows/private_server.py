"""Prefect's private server, for when no other is set; a terminal's Ctrl-C does not reach it.

Prefect would start one by itself, from a process that has imported all of the server's code first. Here it starts from
one that goes on with its own imports meanwhile.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx
import prefect
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, get_current_settings, temporary_settings

from flows.signals import out_of_reach

T = TypeVar("T")

POLL_SECONDS, LEAVE_SECONDS = 0.05, 1.0
PORT_TAKEN = 3  # uvicorn's exit status where it cannot listen
# As Prefect tells its own private servers: no page, and no services that only a lasting server needs.
PRIVATE = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


@contextmanager
def private_server(meanwhile: Callable[[], T]) -> Iterator[T]:
    """Within, flows of this process have a server; it ends with the block. `meanwhile` is called while it starts.

    A Ctrl-C ends the flow alone, which can still tell the server so. Were the server gone too, the flow would wait
    minutes for its answer. Where a server is set, or none may be started, nothing is. Raises RuntimeError where the
    server does not start.
    """
    settings = get_current_settings()
    if settings.api.url is not None or not settings.server.ephemeral.enabled:
        yield meanwhile()
        return
    with _Server() as server:
        result = meanwhile()
        server.wait(settings.server.ephemeral.startup_timeout_seconds)
        # Log lines would still be on their way when the server ends, and nobody reads them there.
        with temporary_settings({PREFECT_API_URL: server.api, PREFECT_LOGGING_TO_API_ENABLED: False}):
            yield result


class _Server:
    """A server's process, on a port of its own; it ends with the block."""

    def __enter__(self) -> "_Server":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:  # what it has answered it has stored
            self._process.kill()
            self._process.wait()

    def wait(self, seconds: float) -> None:
        """Wait until the server answers. Raises RuntimeError where it does not within `seconds`."""
        last = time.monotonic() + seconds
        with httpx.Client() as client:
            while not self._answers(client):
                if self._process.poll() == PORT_TAKEN:
                    self._start()
                elif self._process.returncode is not None:
                    raise RuntimeError(f"Prefect's private server ended with status {self._process.returncode}")
                elif time.monotonic() > last:
                    raise RuntimeError(f"Prefect's private server does not answer within {seconds:.0f} seconds")
                time.sleep(POLL_SECONDS)

    def _start(self) -> None:
        port = _free_port()
        self.api = f"http://127.0.0.1:{port}/api"
        where = ["--app-dir", str(Path(prefect.__file__).parent.parent), "--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, "-m", "uvicorn", *where, "--factory", "prefect.server.api.server:create_app"]
        own = get_current_settings().to_environment_variables(exclude_unset=True)
        with out_of_reach():
            self._process = subprocess.Popen(
                [*command, "--log-level", "error", "--lifespan", "on"], env=os.environ | PRIVATE | own
            )

    def _answers(self, client: httpx.Client) -> bool:
        try:
            return client.get(f"{self.api}/health").is_success
        except httpx.TransportError:
            return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
