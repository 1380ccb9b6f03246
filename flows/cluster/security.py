"""Who may connect to a cluster: whoever holds the certificate of the run, or those that a settings file names.

Whoever reaches a Dask scheduler may run any code there, so that an open port would be an open door to every user of the
machine.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flows.cluster.errors import ClusterError
from flows.cluster.settings import TlsFiles

if TYPE_CHECKING:
    from distributed import Security


def own_certificate() -> "Security":
    """A certificate made for this run, which only memory holds."""
    from distributed import Security

    own: Security = Security.temporary()  # type: ignore[no-untyped-call]
    return own


def certificate_in(files: TlsFiles) -> "Security":
    """The certificates in `files`. Raises ClusterError where one of them is not there."""
    from distributed import Security

    paths = {key: path for key, path in asdict(files).items() if path is not None}
    for key, path in paths.items():
        if not Path(path).is_file():
            raise ClusterError(f"security.{key}: no such file: {path}")
    for role in ("scheduler", "worker"):
        paths = {f"tls_{role}_cert": files.tls_client_cert, f"tls_{role}_key": files.tls_client_key} | paths
    return Security(require_encryption=True, **paths)  # type: ignore[no-untyped-call]
