"""Prefect servers of real processes, that come and go."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import psutil
from registries import wait_for_answer


@contextmanager
def own_prefect_server(folder: Path, port: int) -> Iterator[str]:
    """The address of a Prefect server's API, with its database in `folder`; it is killed at the end of the block."""
    own = {"PREFECT_HOME": str(folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | own
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "prefect.log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/api/health", folder / "prefect.log")
        yield f"http://127.0.0.1:{port}/api"
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.wait()


def asked(address: str, values: object = None, tries: int = 10) -> Any:
    """What a server answers; where its SQLite is busy it says 503, and is asked again, as Prefect's client does."""
    body = None if values is None else json.dumps(values).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        if error.code != HTTPStatus.SERVICE_UNAVAILABLE or tries == 1:
            raise
    time.sleep(1)
    return asked(address, values, tries - 1)
