"""Which cells a count looks for, and which of a detector's classes that leaves out."""

from collections.abc import Mapping
from typing import Literal

Sought = Literal["all", "white", "white_and_platelets"]

_LEFT_OUT: Mapping[Sought, tuple[str, ...]] = {
    "all": (),
    "white": ("rbc", "platelet"),
    "white_and_platelets": ("rbc",),
}


def left_out(sought: Sought) -> tuple[str, ...]:
    """The classes, and cell types, that are not looked for."""
    return _LEFT_OUT[sought]


def not_sought_words(sought: Sought) -> str:
    """What was not looked for, for people; "" where all cells were."""
    names = {"rbc": "red cells", "platelet": "platelets"}
    return " and ".join(names[name] for name in left_out(sought))
