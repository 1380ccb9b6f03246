"""The services of docker/compose.yaml without a container engine: commands, users, files and secrets as they stand.

Each service gets a root of its own as an engine would make it: read-only (this machine's, with the repository where the
image has it), with its volumes, secrets and temporary folders and nothing else to write to; without capabilities; in
one network namespace without an outside, in which services find each other by name. Needs root, Linux and PostgreSQL.
"""

import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.image_tree import PATH, ROOT, stages_of

DOCKER = ROOT / "docker"
STOP_SECONDS, POLL_SECONDS = 20, 0.5
# Puts $1 where a container has $2; "ro" as $3 lets nobody write there.
BIND = r"""
bind() {
    if [ -d "$1" ]; then mkdir -p "$2"; else mkdir -p "$(dirname "$2")"; [ -e "$2" ] || : > "$2"; fi
    mount --bind "$1" "$2"
    [ "$3" != ro ] || mount -o remount,ro,bind "$2"
}
"""
# What the entry script of PostgreSQL's official image does with an empty folder, and with a full one.
POSTGRES = r"""
data=/var/lib/postgresql/data/pgdata
if [ ! -s $data/PG_VERSION ]; then
    initdb --pgdata=$data --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" --auth-local=trust \
        --auth-host=scram-sha-256
    echo 'host all all all scram-sha-256' >> $data/pg_hba.conf
    pg_ctl --pgdata=$data --options='-c listen_addresses=' --wait start
    for script in /docker-entrypoint-initdb.d/*.sh; do "$script"; done
    pg_ctl --pgdata=$data --mode=fast --wait stop
fi
exec postgres -D $data -c listen_addresses='*'
"""


def postgres_programs() -> str | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return str(folders[-1]) if folders else None


def why_not() -> str | None:
    """Why services cannot run here; None where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need root on Linux"
    if missing := [name for name in ("unshare", "nsenter", "setpriv", "ip", "openssl") if shutil.which(name) is None]:
        return f"no {', '.join(missing)} here"
    if postgres_programs() is None:
        return "no PostgreSQL here: apt-get install postgresql"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() or None


class Containers:
    """The services of a compose file, started in the order of what they need, each once or `scale` times."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.services: dict[str, Any] = config["services"]
        self.secrets = {name: secret["file"] for name, secret in config["secrets"].items()}
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Containers":
        hold = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"]
        self._net = self._stack.enter_context(subprocess.Popen(hold, stdout=subprocess.PIPE))
        self._stack.callback(self._net.kill)
        assert self._net.stdout
        assert self._net.stdout.readline() == b"up\n"
        names = " ".join(self.services)
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {names}\n")
        return self

    def __exit__(self, *_: object) -> None:
        for container, process in reversed(self.running.items()):  # whoever needs another was started after it
            if process.poll() is None:
                self.stop(container)
        self._stack.close()

    def up(self, seconds: float) -> None:
        """Start all services, each as soon as what it depends on is as it must be."""
        deadline, waiting, healthy = time.monotonic() + seconds, dict(self.services), set[str]()
        while waiting or len(healthy) < len(self.services):
            for name in [name for name, service in waiting.items() if self._may_start(service, healthy)]:
                del waiting[name]
                for number in range(int(self.services[name].get("scale", 1))):
                    self.start(name, number)
            healthy |= {n for n in self.services if n not in waiting and n not in healthy and self.is_well(n)}
            assert time.monotonic() < deadline, f"not up: {sorted(set(self.services) - healthy)}\n{self.logs()}"
            time.sleep(POLL_SECONDS)

    def _may_start(self, service: dict[str, Any], healthy: set[str]) -> bool:
        return healthy.issuperset(service.get("depends_on", {}))

    def is_well(self, name: str) -> bool:
        """Whether a service passes its health check; one without is well when it has ended well."""
        test = self.services[name].get("healthcheck", {}).get("test")
        if test is None:
            return self.running[f"{name}-0"].poll() == 0
        command = test[1:] if test[0] == "CMD" else ["sh", "-c", test[1].replace("$$", "$")]
        return self.run(name, command, check=False).returncode == 0

    def start(self, name: str, number: int = 0) -> subprocess.Popen[bytes]:
        """Start a container of a service."""
        service, key = self.services[name], f"{name}-{number}"
        words = [*(service.get("entrypoint") or []), *(service.get("command") or [])]
        if service["image"].startswith("postgres") and not words:
            words = ["bash", "-ec", POSTGRES]
        with (self.folder / f"{key}.log").open("ab") as log:
            self.running[key] = subprocess.Popen(self._inside(name, words), stdout=log, stderr=log)
        return self.running[key]

    def stop(self, container: str, *, kill: bool = False) -> None:
        """End a container: as an engine does, or at once."""
        process = self.running[container]
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(process.pid).children(recursive=True)
            if kill:
                for child in started:
                    child.kill()
                process.kill()
            # The official image of PostgreSQL asks for SIGINT, which waits for no client.
            process.send_signal(signal.SIGINT if container.startswith("postgres") else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            for left in [*started, process]:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
        process.wait()

    def run(
        self, name: str, words: Sequence[str], *, check: bool = True, user: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end in a service's container."""
        command = self._inside(name, words, user)
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}\n{done.stderr}"
        return done

    def logs(self) -> str:
        """The end of what each container has said."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self.folder.glob("*.log")))

    def _inside(self, name: str, words: Sequence[str], user: str | None = None) -> list[str]:
        """The command that runs `words` in a container of a service."""
        service = self.services[name]
        network = ["nsenter", f"--net=/proc/{self._net.pid}/ns/net", "unshare", "--mount", "--propagation", "private"]
        return [*network, "bash", "-ec", self._script(service, words, user or service["user"])]

    def _script(self, service: dict[str, Any], words: Sequence[str], user: str) -> str:
        is_own = "build" in service
        environment, entry = image_settings(service["build"]["target"]) if is_own else ({}, [])
        environment = {"PATH": f"{postgres_programs()}:{PATH}"} | environment | service.get("environment", {})
        if service.get("entrypoint"):
            entry = []
        binds = [
            (volume["source"], volume["target"], volume.get("read_only", False)) for volume in self._volumes(service)
        ]
        binds += [(self.secrets[s["source"]], f"/run/secrets/{s['source']}", True) for s in service.get("secrets", [])]
        binds += [(str(self.folder / "hosts"), "/etc/hosts", True)]
        binds += [(str(ROOT), "/opt/wbc", True), (sys.prefix, "/opt/venv", True)] if is_own else []
        binds += [(str(ROOT), str(ROOT), True)] if is_own and ROOT.is_relative_to("/tmp") else []  # scripts name it
        uid, _, gid = user.partition(":")
        person = pwd.getpwnam(uid) if not uid.isdigit() else None
        ids = (person.pw_uid, person.pw_gid) if person else (int(uid), int(gid))
        drop = ["setpriv", f"--reuid={ids[0]}", f"--regid={ids[1]}", "--clear-groups"]
        drop += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        settings = [f"{key}={value}" for key, value in environment.items()]
        command = shlex.join([*drop, "env", "-i", "-C", "/opt/wbc" if is_own else "/", *settings, *entry, *words])
        return "\n".join(
            [
                "layer=$(mktemp -d) && mount -t tmpfs tmpfs $layer && mkdir $layer/upper $layer/work $layer/root",
                "r=$layer/root",
                "mount -t overlay overlay -o lowerdir=/,upperdir=$layer/upper,workdir=$layer/work $r",
                *(f"chmod o+x $r{parent}" for parent in passed_through()),
                "mount --rbind /proc $r/proc; mount --rbind /dev $r/dev",
                # What is left of this machine's temporary files would be there to write to.
                *(f"mount -t tmpfs -o mode=1777 tmpfs $r{place}" for place in (service.get("tmpfs", []))),
                "mkdir -p $r/run/secrets",
                BIND,
                *(f"bind {source} $r{target} {'ro' if read_only else 'rw'}" for source, target, read_only in binds),
                "mount -o remount,ro,bind $r" if service["read_only"] else "",
                f"exec chroot $r {command}",
            ]
        )

    def _volumes(self, service: dict[str, Any]) -> list[dict[str, Any]]:
        """Volumes with the folder that each is here."""
        volumes = service.get("volumes", [])
        return [v | {"source": str(self._named(v["source"]))} if v["type"] == "volume" else v for v in volumes]

    def _named(self, volume: str) -> Path:
        folder = self.folder / volume
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        return folder


def passed_through() -> list[str]:
    """The folders on the way to the interpreter, which other users may not be let through."""
    ends = (ROOT, Path(sys.prefix), Path(sys.base_prefix).resolve())
    return sorted({str(parent) for end in ends for parent in end.parents if str(parent) != "/"})


def image_settings(target: str) -> tuple[dict[str, str], list[str]]:
    """The environment and the entry command that the Dockerfile gives an image."""
    stages = stages_of((DOCKER / "Dockerfile").read_text())
    environment: dict[str, str] = {"PATH": PATH}
    entry: list[str] = []
    for name in (stages[target].base, target):
        for word, rest in stages[name].steps:
            if word == "ENV":
                for pair in shlex.split(rest.replace("${PATH}", environment["PATH"])):
                    key, _, value = pair.partition("=")
                    environment[key] = value
            elif word == "ENTRYPOINT":
                entry = json.loads(rest)
    return environment, entry
