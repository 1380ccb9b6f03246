"""A folder for results on every kind of file system."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from upath import UPath


@pytest.fixture(params=["local", "file", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[UPath]:
    """A folder that does not exist yet: a local path, a local address, in memory."""
    if request.param != "memory":
        yield UPath(tmp_path / "out" if request.param == "local" else f"file://{tmp_path}/out")
        return
    folder = UPath(f"memory://{uuid4().hex}/out")
    yield folder
    if folder.exists():
        folder.fs.rm(folder.parent.path, recursive=True)
