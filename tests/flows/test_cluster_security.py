"""Who gets into a cluster: nobody without the certificate of the run, or of the settings file."""

import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster, Security, get_worker

from flows.cluster import ClusterError, ClusterSettings, open_cluster, read_settings

pytestmark = pytest.mark.dask

ROLES = ("client", "scheduler", "worker")
HERE = ClusterSettings(workers=1, wait_seconds=120)
ARGUMENTS = {"n_workers": 1, "dashboard_address": "127.0.0.1:0"}
CLASS_HERE = ClusterSettings(None, "distributed.LocalCluster", ARGUMENTS, wait_seconds=120)


def addresses() -> tuple[str, str, str]:
    """On a worker: where its scheduler, it and its nanny listen."""
    worker = get_worker()
    return worker.scheduler.address, worker.address, worker.nanny


def add(a: int, b: int) -> int:
    return a + b


def open_doors(*addresses: str) -> list[str]:
    """Those of the addresses at which a stranger, in a process of his own, may run what he likes."""
    command = [sys.executable, str(Path(__file__).with_name("stranger.py")), *addresses]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_stranger_gets_into_a_cluster_without_certificates() -> None:
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster:
        assert open_doors(cluster.scheduler_address) == [cluster.scheduler_address]


@pytest.mark.parametrize("settings", [HERE, CLASS_HERE], ids=["without settings", "class"])
def test_cluster_here_lets_nobody_in_without_its_certificate(settings: ClusterSettings) -> None:
    with open_cluster(settings, "cpu", []) as opened:
        doors = opened.reading.submit(addresses).result(timeout=60)
        assert open_doors(*doors) == []
        for door in doors:
            host, port = door.removeprefix("tls://").rsplit(":", 1)
            with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
                handshake_without_certificate(host, int(port))
        assert opened.inference.submit(add, 1, 2).result(timeout=60) == 3


def handshake_without_certificate(host: str, port: int) -> None:
    """Speak TLS with a port and wait for its first word: raises ssl.SSLError where it wants a certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, port), timeout=10) as plain, context.wrap_socket(plain) as encrypted:
        encrypted.recv(1)


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate authority, certificate and key in files, by the names of a settings file."""
    folder, own = tmp_path_factory.mktemp("tls"), Security.temporary()
    (folder / "site.crt").write_text(own.tls_client_cert)
    (folder / "site.key").write_text(own.tls_client_key)
    crt, key = str(folder / "site.crt"), str(folder / "site.key")
    return {"tls_ca_file": crt, "tls_client_cert": crt, "tls_client_key": key}


@pytest.fixture(scope="module")
def guarded_scheduler(tls_files: dict[str, str]) -> Iterator[str]:
    """The address of a running cluster that wants those files of whoever connects."""
    roles = {f"tls_{role}_{what}": tls_files[f"tls_client_{what}"] for role in ROLES for what in ("cert", "key")}
    security = Security(require_encryption=True, tls_ca_file=tls_files["tls_ca_file"], **roles)
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0", security=security) as cluster:
        yield cluster.scheduler_address


def site_file(folder: Path, text: str, files: dict[str, str]) -> str:
    lines = [text, "[security]", *(f'{key} = "{path}"' for key, path in files.items())]
    (folder / "site.toml").write_text("\n".join(lines))
    return str(folder / "site.toml")


def test_settings_file_opens_a_guarded_scheduler(
    guarded_scheduler: str, tls_files: dict[str, str], tmp_path: Path
) -> None:
    assert guarded_scheduler.startswith("tls://")
    assert open_doors(guarded_scheduler) == []
    named = read_settings(site_file(tmp_path, f'scheduler = "{guarded_scheduler}"', tls_files))
    asked_for = read_settings(site_file(tmp_path, "", tls_files)).overridden(None, guarded_scheduler)
    for settings in (named, asked_for):
        with open_cluster(settings, "cpu", []) as opened:
            assert opened.reading.submit(add, 1, 2).result(timeout=60) == 3


def test_guarded_scheduler_without_certificate_is_named(guarded_scheduler: str) -> None:
    words = rf"{guarded_scheduler} wants a certificate"
    opening = open_cluster(ClusterSettings(scheduler=guarded_scheduler), "cpu", [])
    with pytest.raises(ClusterError, match=words), opening:
        pass


def test_encryption_that_a_scheduler_does_not_speak_is_named(tls_files: dict[str, str], tmp_path: Path) -> None:
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster:
        address = cluster.scheduler_address
        settings = read_settings(site_file(tmp_path, f'scheduler = "{address}"', tls_files))
        with pytest.raises(ClusterError, match=f"{address}.*encryption"), open_cluster(settings, "cpu", []):
            pass


def test_cluster_of_a_class_takes_its_certificates_from_the_settings_file(
    tls_files: dict[str, str], tmp_path: Path
) -> None:
    text = (
        'class = "distributed.LocalCluster"\narguments = {processes = false, n_workers = 1, dashboard_address = ":0"}'
    )
    with open_cluster(read_settings(site_file(tmp_path, text, tls_files)), "cpu", []) as opened:
        scheduler, _, _ = opened.reading.submit(addresses).result(timeout=60)
        assert scheduler.startswith("tls://")
        assert open_doors(scheduler) == []


def test_certificate_that_is_not_there_is_named(tls_files: dict[str, str], tmp_path: Path) -> None:
    path = site_file(tmp_path, 'scheduler = "tls://127.0.0.1:9"', tls_files | {"tls_client_key": "/no/such.key"})
    words = r"security.tls_client_key: no such file: /no/such.key"
    with pytest.raises(ClusterError, match=words), open_cluster(read_settings(path), "cpu", []):
        pass
