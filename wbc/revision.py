"""Which code this is: the same on every machine that has the same files."""

import hashlib
from functools import cache
from pathlib import Path

import wbc


@cache
def code_revision() -> str:
    """SHA-256 of the source files of the wbc that this process runs, 64 hexadecimal digits."""
    root = Path(wbc.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def file_revision(path: Path) -> str:
    """Name of a file and the first twelve digits of its SHA-256: which version of it something was made by."""
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
