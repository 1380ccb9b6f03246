"""Whether a champion still is what it was: its figures on frozen slides beside those that its version keeps."""

from dataclasses import dataclass

from wbc.evaluation.frozen import Frozen
from wbc.evaluation.gate import GateSettings, figures_of
from wbc.models import tracking, versions
from wbc.models.cards import Task
from wbc.models.versions import CHAMPION, NAMES


@dataclass(frozen=True, slots=True)
class DriftRow:
    """A figure of a champion, from 0 to 1: what its version keeps and what it is now, and whether it fell too far."""

    figure: str
    kept: float
    now: float
    drifted: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """A champion's figures then and now.

    `is_first` where its version kept none: then those of now are kept. `same_slides` says whether the frozen slides are
    those that the kept figures are of.
    """

    reference: str
    rows: tuple[DriftRow, ...]
    is_first: bool
    same_slides: bool

    @property
    def drifted(self) -> tuple[DriftRow, ...]:
        """The figures that fell too far."""
        return tuple(row for row in self.rows if row.drifted)


def check_drift(task: Task, frozen: Frozen, device: str, settings: GateSettings = GateSettings()) -> Drift | None:
    """Measure a task's champion anew; None where no version is champion.

    A figure has drifted where it is more than `most_fall` points below what the version keeps, on kinds with at least
    `fewest` cells in the set. Raises as `judge` does, and ModelError where the registry fails.
    """
    if versions.champion_or_bundled(task).startswith("bundled:"):
        return None
    version = versions.version_of(f"models:/{NAMES[task]}@{CHAMPION}")
    figures, digest = figures_of(version.reference, task, frozen, device, settings), frozen.digest()
    kept = {name: value for name, value in version.metrics.items() if name in figures}
    if not kept:
        tracking.log_figures(version.run_id, figures)
        tracking.tag_version(version, {"frozen": digest})
    fall = settings.most_fall / 100
    rows = tuple(DriftRow(name, kept[name], figures[name], kept[name] - figures[name] > fall) for name in sorted(kept))
    return Drift(version.reference, rows, not kept, version.tags.get("frozen", digest) == digest)
