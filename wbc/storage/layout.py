"""OUT, the folder that a count's results go to: every path in it, whether it can take them, and what a killed run left.

```
OUT/cells, differentials, slides    the tables, a file a slide
OUT/detections, fields              what they are made from: all that the models said, what became of each field
OUT/corrections                     what people said of cells, a file a slide that has any
OUT/history/<count_id>/…            the tables of a count that another has replaced, and why (superseded/)
OUT/annotated/<slide_id>/           drawings of the fields
OUT/pixels/<slide_id>.zarr          pixels that were to be kept
OUT/.wbc/                           what the program keeps for itself: stamps of fields, pixels of a run, who writes,
                                    reference cells of classifiers
```
"""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from upath import UPath

from wbc.storage import atomic
from wbc.storage.names import safe_name

logger = logging.getLogger(__name__)
TableName = Literal["cells", "differentials", "fields", "detections", "slides"]

# The row in `slides` is last: it is written last, and goes last.
TABLES: tuple[TableName, ...] = ("cells", "differentials", "fields", "detections", "slides")
_STATE = ".wbc"
_ALWAYS_MADE = (*TABLES, _STATE)
_FOLDERS = (*_ALWAYS_MADE, "history", "annotated", "corrections")


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths in OUT. Methods that take a `slide_id` raise ValueError for one that is no safe file name."""

    out: UPath

    def table(self, table: TableName, slide_id: str) -> UPath:
        """A slide's file of one table."""
        return self.out / table / f"{_checked(slide_id)}.parquet"

    def history(self, count_id: str) -> "Layout":
        """Where the tables of a count go that another replaces."""
        return Layout(self.out / "history" / count_id)

    def corrections(self, slide_id: str) -> UPath:
        """What people said of a slide's cells."""
        return self.out / "corrections" / f"{_checked(slide_id)}.parquet"

    def superseded(self, slide_id: str) -> UPath:
        """Why a slide's count in the history is there."""
        return self.out / "superseded" / f"{_checked(slide_id)}.json"

    def drawings_folder(self, slide_id: str) -> UPath:
        """Where the drawings of a slide's fields lie."""
        return self.out / "annotated" / _checked(slide_id)

    def drawings(self, slide_id: str, fields: Iterable[str]) -> dict[str, UPath]:
        """The drawing of each of a slide's fields, all of which must be named, `fields` as in `cells`: `<stem>.jpg`.

        Fields that would meet in one drawing, as `a.jpg` and `a.png`, keep their names: `a.jpg.jpg` and `a.png.jpg`.
        """
        stems = {field: field.rpartition(".")[0] or field for field in fields}
        # Some file systems take names that differ in case alone for one.
        claims = Counter(name.casefold() for field, stem in stems.items() for name in {field, stem})
        names = {field: stem if claims[stem.casefold()] == 1 else field for field, stem in stems.items()}
        return {field: self.drawings_folder(slide_id) / f"{safe_name(name)}.jpg" for field, name in names.items()}

    def stamps(self, slide_id: str) -> UPath:
        """What is known of the files of a slide."""
        return self.out / _STATE / f"{_checked(slide_id)}.json"

    def pixels_group(self, slide_id: str, run_id: str | None) -> UPath:
        """The Zarr group of a slide's pixels while a run counts it; of those to be kept, where there is no `run_id`."""
        folder = self.out / "pixels" if run_id is None else self.out / _STATE / "pixels" / run_id
        return folder / f"{_checked(slide_id)}.zarr"

    def reference_cells(self, sha256: str) -> UPath:
        """The copy of a classifier's reference cells: a recount needs them, and no model."""
        return self.out / _STATE / "reference_cells" / f"{sha256}.safetensors"

    def lease(self) -> UPath:
        """Where the one run that writes to OUT says that it does."""
        return self.out / _STATE / "writer" / "lease.json"

    def lock(self) -> UPath:
        """The file that this run has locked, where OUT is local."""
        return self.out / _STATE / "writer" / "lock"

    def slide_ids(self, table: TableName = "slides") -> list[str]:
        """The slides that have a file of a table, sorted; none where there is no such folder."""
        folder = self.out / table
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        files = [name for name in names if name.endswith(".parquet") and name[0] not in "._"]
        return sorted(name.removesuffix(".parquet") for name in files)

    def check_apart(self, slides: UPath) -> None:
        """Raises ValueError where the slides and the results in OUT would lie among each other.

        In SLIDES and below it, drawings and pixels would be counted as slides by the next run; slides in a folder that
        tables go to would keep readers of that folder from reading it.
        """
        if _holds(slides, self.out):
            raise ValueError(
                f"OUT {str(self.out)!r} lies in SLIDES {str(slides)!r}: the next run would count its results"
            )
        if any(_holds(self.out / name, slides) for name in _FOLDERS):
            raise ValueError(f"SLIDES {str(slides)!r} lies where the results in OUT {str(self.out)!r} go")

    def check_writable(self) -> None:
        """Make OUT and what every count writes to, a byte into each. Raises OSError, naming what cannot be written."""
        for name in _ALWAYS_MADE:
            with atomic.naming(self.out / name, "results cannot be written here"):
                atomic.write_temporary(self.out / name / "probe", b"\0", durable=False).unlink()

    def leftovers(self) -> Iterator[UPath]:
        """What a killed run left half-written, and its pixels that were not to be kept."""
        for name in _FOLDERS:
            yield from atomic.temporaries(self.out / name)
        groups = self.out / _STATE / "pixels"
        yield from groups.iterdir() if groups.is_dir() else ()

    def sweep(self) -> None:
        """Remove what a killed run left: pixels that were not to be kept, and files half-written.

        For the run that holds OUT alone: whatever is there is of its own or of dead ones. What cannot be removed is
        logged, and left to the next run: no count depends on it.
        """
        with _logged():
            atomic.remove_folder(self.out / _STATE / "pixels")
        for name in _FOLDERS:
            with _logged():
                atomic.remove_temporaries(self.out / name)


@contextmanager
def _logged() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logger.warning("left to the next run: %s", error)


def results_among(names: Collection[str]) -> set[str]:
    """Those of the names in a folder that are folders of results; none unless it is an OUT."""
    return {*_FOLDERS, "pixels"}.intersection(names) if _STATE in names else set()


def _checked(slide_id: str) -> str:
    # Parquet readers pass over files whose names begin so.
    if not slide_id or "/" in slide_id or slide_id[0] in "._":
        raise ValueError(f"slide_id {slide_id!r} is no safe file name")
    return slide_id


def _holds(folder: UPath, path: UPath) -> bool:
    """Whether `path` is `folder` or lies below it, by whatever links a local one is reached."""
    local, other = atomic.local_path(folder), atomic.local_path(path)
    if local is not None and other is not None:
        return Path(os.path.realpath(other)).is_relative_to(os.path.realpath(local))
    return folder.fs == path.fs and PurePosixPath(path.path).is_relative_to(folder.path)
