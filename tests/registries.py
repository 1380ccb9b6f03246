"""Registries of models for tests: an MLflow database of its own, and MLflow servers that come and go."""

import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil

SECONDS = 300


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """The address of an MLflow server that keeps all in `folder`; it is there, and gone, when the block is."""
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen([*command, *stores], cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        wait_for_answer(f"{address}/health", folder / "server.log")
        yield address
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        for one in [process, *started]:
            if psutil.pid_exists(one.pid):
                one.kill()
        process.wait()


def wait_for_answer(address: str, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])


def free_port() -> int:
    """A port for a server that begins later: none of those that Linux gives to whoever asks for any (32768 and up)."""
    while True:
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.randrange(20_000, 32_768)))
            return port
