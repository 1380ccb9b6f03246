"""Cell types: their tree, lineage, and which of them counts towards which percentage; the data are TOML files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from wbc.configs import parse_toml

Lineage = Literal["myeloid", "erythroid", "lymphoid", "plasma", "megakaryocytic", "other"]
MeSide = Literal["myeloid", "erythroid"]

# A generic detector's word for a nucleated cell: whatever the taxonomy, a cell whose type is not known.
GENERIC = "wbc"
UNIDENTIFIED = "unidentified"
# What a detector took for a nucleated cell, and a classifier for debris, a giant platelet or a heap of stain.
NOT_A_WHITE_CELL = "not_a_white_cell"

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class CellType:
    """A type of cells: `in_differential` puts it in the denominator, `me_side` on one side of the M:E ratio."""

    name: str
    abbreviation: str
    lineage: Lineage
    nucleated: bool
    in_differential: bool
    parent: str | None = None
    me_side: MeSide | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if self.in_differential and not self.nucleated:
            raise ValueError("a cell without a nucleus cannot be in the differential")


@dataclass(frozen=True, slots=True)
class Threshold:
    """A percentage (0..100) of `cell_type` at which a diagnosis turns."""

    cell_type: str
    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent < 100:
            raise ValueError(f"{self.percent} % of {self.cell_type} is no percentage between 0 and 100")


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """A tree of cell types and the rules of counting them.

    `nrbc` is the type reported per 100 white cells, outside the denominator. `aliases` are pairs (foreign name, own
    type). `priors` are pairs (own type, how likely it is before it is looked at, as a part of the commonest types').
    The last type is always `unidentified`: a nucleated cell that could not be named. A laboratory reports
    it as a class of its own within the differential, so it is in the denominator and on neither side of M:E. The one
    before it is `not_a_white_cell`: what was found as one and refused, in no denominator.

    Raises ValueError where types, thresholds, `nrbc`, aliases or priors contradict each other.
    """

    name: str
    cell_types: tuple[CellType, ...]
    thresholds: tuple[Threshold, ...]
    nrbc: str | None
    note: str
    aliases: tuple[tuple[str, str], ...] = ()
    priors: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_tree(self)
        _check_rules(self)

    def knows(self, name: str) -> bool:
        """Whether `name` is a type, an alias of one, or the generic `wbc`."""
        return name == GENERIC or any(t.name == name for t in self.cell_types) or name in dict(self.aliases)

    def resolve(self, name: str) -> str:
        """The own type that `name` means: itself, an alias's target, `unidentified` for `wbc`.

        Raises ValueError where the taxonomy does not know it.
        """
        if not self.knows(name):
            raise ValueError(f"taxonomy {self.name} does not know {name!r}")
        return UNIDENTIFIED if name == GENERIC else dict(self.aliases).get(name, name)

    def cell_type(self, name: str) -> CellType:
        """The type that `name` means. Raises ValueError where the taxonomy does not know it."""
        own = self.resolve(name)
        return next(t for t in self.cell_types if t.name == own)

    def prior(self, name: str) -> float:
        """How likely the type that `name` means is before it is looked at: its own prior, else its parent's, else 1."""
        own, priors = self.resolve(name), dict(self.priors)
        return next((priors[t] for t in (own, *self.ancestors(own)) if t in priors), 1.0)

    def children(self, name: str) -> tuple[str, ...]:
        """The types right below `name`, in the taxonomy's order."""
        own = self.resolve(name)
        return tuple(t.name for t in self.cell_types if t.parent == own)

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The types above `name`, nearest first."""
        parent = self.cell_type(name).parent
        return () if parent is None else (parent, *self.ancestors(parent))

    def leaves(self, name: str) -> tuple[str, ...]:
        """The finest types at or below `name`, in the tree's order; a type without children is its own leaf."""
        below = self.children(name)
        return tuple(leaf for child in below for leaf in self.leaves(child)) if below else (self.resolve(name),)

    def is_a(self, name: str, ancestor: str) -> bool:
        """Whether `name` is `ancestor` or lies below it."""
        return self.resolve(ancestor) in (self.resolve(name), *self.ancestors(name))

    def roll_up(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts of all types, each with its descendants' added, from own counts by type (missing ones are 0)."""
        total = {t.name: 0 for t in self.cell_types}
        for name, n in counts.items():
            for at_or_above in (self.resolve(name), *self.ancestors(name)):
                total[at_or_above] += n
        return total


def shipped_taxonomies() -> tuple[str, ...]:
    """The names that `load_taxonomy` knows without a file, sorted."""
    files_there = files("wbc").joinpath("taxonomies").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files_there if f.name.endswith(".toml")))


def load_taxonomy(reference: str) -> Taxonomy:
    """The taxonomy of a shipped name, or of a TOML file at a path or fsspec address.

    Raises ValueError, naming file and reason, where there is none or it contradicts itself.
    """
    shipped = shipped_taxonomies()
    try:
        if reference in shipped:
            content = files("wbc").joinpath("taxonomies", f"{reference}.toml").read_bytes()
        else:
            content = UPath(reference).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"taxonomy {reference}: no such file, and none of the shipped {', '.join(shipped)}") from error
    except OSError as error:
        raise ValueError(f"taxonomy {reference}: cannot be read ({error})") from error
    file = parse_toml(content, _TaxonomyFile, f"taxonomy {reference}")
    try:
        return file.taxonomy()
    except ValueError as error:
        raise ValueError(f"taxonomy {reference}: {error}") from error


def check_classes(taxonomy: Taxonomy, classes: Sequence[str], model_name: str) -> None:
    """Raises ValueError, naming them, where the model has classes that the taxonomy does not know."""
    if unknown := [c for c in classes if not taxonomy.knows(c)]:
        raise ValueError(f"taxonomy {taxonomy.name} does not know these classes of {model_name}: {', '.join(unknown)}")


def label_matrix(taxonomy: Taxonomy, classes: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
    """Which classes each label covers: float32 (labels, classes), 1 where the class is the label or lies below it.

    With it a coarse label trains through the tree: a parent's probability is the sum of its children's,
    `matrix @ probabilities`. Names are resolved by the taxonomy first. Raises ValueError where a name is unknown or a
    label covers no class.
    """
    rows = [[taxonomy.is_a(c, label) for c in classes] for label in labels]
    if empty := [label for label, row in zip(labels, rows, strict=True) if not any(row)]:
        raise ValueError(f"labels {', '.join(empty)} cover none of the classes {', '.join(classes)}")
    return np.array(rows, np.float32).reshape(len(labels), len(classes))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not lower case words joined by underscores")


def _check_tree(taxonomy: Taxonomy) -> None:
    """Raises ValueError unless names are distinct and parents form a tree that ends in `unidentified`."""
    parents: dict[str, str | None] = {}
    for cell_type in taxonomy.cell_types:
        if cell_type.name in parents:
            raise ValueError(f"{cell_type.name} is there twice")
        parents[cell_type.name] = cell_type.parent
    if not parents or taxonomy.cell_types[-2:] != _EVERYWHERE or GENERIC in parents:
        raise ValueError(
            f"the types must end in {NOT_A_WHITE_CELL} and {UNIDENTIFIED}, and none may be named {GENERIC}"
        )
    for name, parent in parents.items():
        path = [name]
        while parent is not None:
            if parent not in parents:
                raise ValueError(f"{path[-1]}: unknown parent {parent!r}")
            path.append(parent)
            if parent in path[:-1]:
                raise ValueError(f"parents form a cycle: {' -> '.join(path)}")
            parent = parents[parent]


def _check_rules(taxonomy: Taxonomy) -> None:
    """Raises ValueError where the denominator, M:E, thresholds, NRBC, aliases or priors do not agree with the tree."""
    own = {t.name: t for t in taxonomy.cell_types}
    for t in taxonomy.cell_types:
        below = [own[c] for c in taxonomy.children(t.name)]
        if below and t.in_differential != all(c.in_differential for c in below):
            raise ValueError(f"{t.name} must be in the differential if, and only if, all its children are")
        if t.me_side and any(c.me_side != t.me_side for c in below):
            raise ValueError(f"{t.name} is on M:E's {t.me_side} side, and not all its children are")
    if len({t.me_side for t in taxonomy.cell_types} - {None}) == 1:
        raise ValueError("me_side names only one side of M:E")
    for threshold in taxonomy.thresholds:
        if threshold.cell_type not in own or not own[threshold.cell_type].in_differential:
            raise ValueError(f"threshold of {threshold.cell_type}: no such type in the differential")
    if taxonomy.nrbc is not None and (taxonomy.nrbc not in own or own[taxonomy.nrbc].in_differential):
        raise ValueError(f"nrbc {taxonomy.nrbc!r} is no type outside the differential")
    for foreign, target in taxonomy.aliases:
        _check_name(foreign)
        if foreign in own or foreign == GENERIC:
            raise ValueError(f"alias {foreign} is a cell type already")
        if target not in own:
            raise ValueError(f"alias {foreign}: unknown cell type {target!r}")
    for name, prior in taxonomy.priors:
        if name not in own:
            raise ValueError(f"prior of {name}: no such cell type")
        if not 0 < prior <= 1:
            raise ValueError(f"prior of {name} is {prior}, not over 0 and up to 1")


_EVERYWHERE = (
    CellType(NOT_A_WHITE_CELL, "NOT", "other", nucleated=False, in_differential=False),
    CellType(UNIDENTIFIED, "UNID", "other", nucleated=True, in_differential=True),
)


@dataclass(frozen=True, slots=True)
class _TaxonomyFile:
    """A taxonomy as its file has it: without `not_a_white_cell` and `unidentified`, which are part of all."""

    name: str
    cell_types: tuple[CellType, ...]
    thresholds: tuple[Threshold, ...] = ()
    nrbc: str | None = None
    note: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    priors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if declared := [t.name for t in self.cell_types if t.name in (NOT_A_WHITE_CELL, UNIDENTIFIED, GENERIC)]:
            raise ValueError(f"cell type {declared[0]} is part of every taxonomy and cannot be declared")

    def taxonomy(self) -> Taxonomy:
        """The taxonomy that the file describes. Raises ValueError where it contradicts itself."""
        return Taxonomy(
            name=self.name,
            cell_types=(*self.cell_types, *_EVERYWHERE),
            thresholds=self.thresholds,
            nrbc=self.nrbc,
            note=" ".join(self.note.split()),
            aliases=tuple(self.aliases.items()),
            priors=tuple(self.priors.items()),
        )
