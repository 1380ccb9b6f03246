"""A folder for results on every sort of file system, and one with counts in it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from uuid import uuid4

import pytest
from fixture_types import Commit, CommitSlide
from upath import UPath

from wbc.storage.tables import FailedField
from wbc.taxonomy import Taxonomy


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


@pytest.fixture
def commit(tmp_path: Path, commit_slide: CommitSlide) -> Commit:
    """Commits a slide with these numbers of cells to OUT, which it returns."""

    def committed(
        slide_id: str, cells: Mapping[str, int], taxonomy: Taxonomy | None = None, failed: tuple[FailedField, ...] = ()
    ) -> UPath:
        out = UPath(tmp_path / "out")
        kinds = [kind for kind, n in cells.items() for _ in range(n)]
        commit_slide(out, slide_id, kinds, taxonomy=taxonomy, failed=failed)
        return out

    return committed
