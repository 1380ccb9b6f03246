"""Texts of which many are alike, as a slide's tens of thousands of boxes lie in few fields and are of few classes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Categorical:
    """N texts: `codes` int32 (N,) say which of the `categories`, all different, each of them is."""

    codes: NDArray[np.int32]
    categories: tuple[str, ...]

    @staticmethod
    def of(texts: Iterable[str]) -> "Categorical":
        """These texts, one by one."""
        places: dict[str, int] = {}
        codes = np.array([places.setdefault(text, len(places)) for text in texts], np.int32)
        return Categorical(codes, tuple(places))

    @staticmethod
    def repeat(text: str, n: int) -> "Categorical":
        """One text, n times."""
        return Categorical(np.zeros(n, np.int32), (text,))

    @staticmethod
    def concatenate(parts: "Sequence[Categorical]") -> "Categorical":
        """The texts of all parts, in order."""
        places: dict[str, int] = {}
        codes = [np.zeros(0, np.int32)]
        for part in parts:
            moved = [places.setdefault(text, len(places)) for text in part.categories]
            codes.append(np.array(moved, np.int32)[part.codes])
        return Categorical(np.concatenate(codes), tuple(places))

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[str]:
        return (self.categories[code] for code in self.codes)

    def take(self, which: NDArray[Any]) -> "Categorical":
        """The texts at `which` (a mask or indices)."""
        return Categorical(self.codes[which], self.categories)

    def used(self) -> "Categorical":
        """The same texts with those categories alone that are among them, in their order."""
        is_used = np.bincount(self.codes, minlength=len(self.categories)) > 0
        moved = np.cumsum(is_used, dtype=np.int32) - np.int32(1)
        kept = tuple(text for text, is_kept in zip(self.categories, is_used, strict=True) if is_kept)
        return Categorical(moved[self.codes], kept)

    def where(self, text: str) -> NDArray[np.bool_]:
        """Which of the texts (N,) are this one."""
        code = self.categories.index(text) if text in self.categories else -1
        return np.equal(self.codes, np.int32(code))

    def counts(self) -> dict[str, int]:
        """How often each category occurs."""
        return dict(zip(self.categories, np.bincount(self.codes, minlength=len(self.categories)).tolist(), strict=True))
