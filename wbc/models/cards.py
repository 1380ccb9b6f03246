"""What a model is and how it must be run: the card beside its weights."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from wbc.configs import checked
from wbc.types import Threshold

# What changes no output.
DESCRIPTION = ("name", "version", "dataset", "metrics", "code_revision", "credits", "parents", "taught")
# Entries that came later, and their values where a model does without.
LATER = {"reference_sha256": "", "stranger_threshold": None, "even_light": False, "hue": None}
Task = Literal["detector", "classifier"]


class ModelError(ValueError):
    """A model reference that cannot be used, with the reason."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a count names it: what the user wrote, and the digest of the card and weights that this meant then."""

    reference: str
    digest: str


@dataclass(frozen=True, slots=True)
class Teaching:
    """How a laboratory taught a classifier: who named which cells of which OUT, and what became of the last layer.

    `kinds` are the names given and how many cells got each; `kept` means that the parent's last layer was the better.
    `replayed` are the data sets from which the body learnt on, beside these cells; where there is none, it is the
    parent's. `unnamed` are how many cells of OUT without a name the last layer learnt from, too.
    """

    by: str
    out: str
    cells: int
    kinds: dict[str, int]
    last_layer: Literal["fitted", "kept"]
    replayed: tuple[str, ...] = ()
    unnamed: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a model is and how it must be run: stored beside its weights as `card.json`.

    `builder` names a function of `wbc.models`, `arguments` its settings; `classes` are cell types in the order of the
    model's outputs (a detector's label 0, background, is not among them). `um_per_px` is the scale of its input;
    `input_px` the side of a classifier's square crop there (0 for a detector); `mean` and `std` are of RGB in 0..1.
    `sha256` is of the weights file. A classifier's crops have their light evened first (`wbc.cells.crop.even_light`) or
    not, then their hues spread over the range `hue` (`wbc.cells.hue.adjust_hue`), if it names one.
    `threshold` is the probability below which a classifier's cell is unidentified;
    `stranger_threshold` takes its place on slides that look like none the classifier has learnt from: one for all, or
    one for each name that is given there at all.
    `parents` are the models that this one was made from, and `taught` is how.
    `reference_sha256` is of the file of reference cells beside the weights, "" where there is none.
    """

    name: str
    version: str
    task: Task
    builder: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    um_per_px: float
    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    sha256: str
    threshold: float = 0.0
    stranger_threshold: Threshold | None = None
    even_light: bool = False
    hue: tuple[float, float] | None = None
    reference_sha256: str = ""
    dataset: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    code_revision: str = ""
    credits: tuple[str, ...] = ()
    parents: tuple[ModelRef, ...] = ()
    taught: Teaching | None = None

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes {self.classes} are empty or repeat")
        if self.hue and not 0 <= self.hue[0] <= self.hue[1] < 180:
            raise ValueError(f"hue is {list(self.hue)}: it runs from low to high within 0 and 180, half degrees")
        if not self.um_per_px > 0 or min(self.std) <= 0:
            raise ValueError(f"no such preprocessing: {self.um_per_px} µm/px, mean {self.mean}, std {self.std}")

    @property
    def digest(self) -> str:
        """64 hexadecimal digits of all that can change what the model says: its weights, and how it must be run.

        Whatever is not known to be mere description counts, so that a new entry of the card does too. A model that does
        without a later entry has the digest that it had before there was one.
        """
        facts = {key: value for key, value in asdict(self).items() if key not in DESCRIPTION}
        facts = {key: value for key, value in facts.items() if key not in LATER or value != LATER[key]}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The card as JSON's types."""
        return asdict(self)

    @staticmethod
    def from_json(values: object, where: str) -> "ModelCard":
        """A card from JSON's types, read from the file `where`. Raises ValueError as `wbc.configs.checked` does."""
        return checked(values, ModelCard, where)
