"""Prefect's private server: a Ctrl-C in the terminal does not end it before the flow has."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from processes import survivors

ROOT = Path(__file__).parents[2]
SCRIPT = """
import signal, sys
from flows.private_server import private_server
from prefect.client.orchestration import get_client

signal.signal(signal.SIGINT, lambda *_: None)
with private_server(meanwhile=lambda: "started") as word:
    print(word, flush=True)
    sys.stdin.readline()
    with get_client(sync_client=True) as client:
        print(client.api_healthcheck())
        print("prefect.server.api.server" in sys.modules)
"""


def test_server_outlives_ctrl_c_and_ends_with_its_process(
    tmp_path: Path,
) -> None:
    own = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | own
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command, pipe = [sys.executable, "-c", SCRIPT], subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "started\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("uvicorn" in word for server in started for word in server.cmdline())
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate("\n", timeout=60)
    assert out == "None\nFalse\n"
    assert survivors(started) == []
