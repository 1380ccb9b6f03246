"""What is measured of the papers' systems, in tables beside the code: a line a training, or a system's costs.

Weights and curves stay where they were trained. A machine without them measures nothing twice all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

RECORD = Path(__file__).parent / "measured"


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file that need not be there yet. No two of its lines have equal `keys`, by which they are sorted."""

    path: Path
    keys: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """All lines, each without what it has no value of."""
        lines = self._read().to_dict("records")
        return [{key: value for key, value in line.items() if pd.notna(value)} for line in lines]

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep lines, each in the place of the one that has its keys."""
        if rows:
            lines = pd.concat([self._read(), pd.DataFrame(rows, dtype=object)])
            lines = lines.drop_duplicates([*self.keys], keep="last").sort_values([*self.keys], kind="stable")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.to_csv(self.path, index=False)

    def _read(self) -> pd.DataFrame:
        return pd.read_csv(self.path).astype(object) if self.path.exists() else pd.DataFrame()


@dataclass(frozen=True, slots=True)
class Record:
    """The tables of a folder: trained classifiers and detectors, what detectors showed while they learnt, and costs."""

    folder: Path

    @property
    def classifiers(self) -> Table:
        """Percent right by set, and the conditions of a training."""
        return Table(self.folder / "classifiers.csv", ("variant", "seed"))

    @property
    def detectors(self) -> Table:
        """COCO's figures on the test slides, each named by its slide."""
        return Table(self.folder / "detectors.csv", ("system", "steps", "seed"))

    @property
    def watched(self) -> Table:
        """Figures on the slides that a training of so many steps watched, by the step of each."""
        return Table(self.folder / "watched.csv", ("system", "steps", "seed", "figure", "step"))

    @property
    def costs(self) -> Table:
        """What an input costs each system."""
        return Table(self.folder / "costs.csv", ("system",))

    def costs_of(self, system: str) -> dict[str, Any]:
        """A system's costs; nothing where they are not measured."""
        return next((row for row in self.costs.rows() if row["system"] == system), {})
