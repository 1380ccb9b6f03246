"""Fixtures that are functions: what each takes and returns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from typer.testing import Result
from upath import UPath

from wbc.storage.tables import FailedField
from wbc.taxonomy import Taxonomy

if TYPE_CHECKING:
    from flows.count_slides import CountReport


class Wbc(Protocol):
    """Runs the command `wbc` in this process."""

    def __call__(self, *arguments: object) -> Result: ...


class RunFlow(Protocol):
    """Runs the flow `count_slides` in this process; `changes` are its other parameters."""

    def __call__(self, slides: UPath, out: UPath, **changes: Any) -> "CountReport": ...


class CommitSlide(Protocol):
    """Leaves a slide's tables in `out` as a count of ten fields does: the types of its cells, and how sure of each."""

    def __call__(
        self,
        out: UPath,
        slide_id: str,
        kinds: Sequence[str],
        type_scores: Sequence[float] | None = None,
        taxonomy: Taxonomy | None = None,
        failed: tuple[FailedField, ...] = (),
    ) -> None: ...


class Commit(Protocol):
    """Leaves the tables of a slide with these numbers of cells in an OUT, which it returns."""

    def __call__(
        self,
        slide_id: str,
        cells: Mapping[str, int],
        taxonomy: Taxonomy | None = None,
        failed: tuple[FailedField, ...] = (),
    ) -> UPath: ...
