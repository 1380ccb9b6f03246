"""Splits by source: which pictures or cells show the same, and whether any of them, or their slide, is on two sides.

Pictures are the same where their files are, or where their perceptual hashes nearly are in one of the eight ways to
turn and mirror a picture (`wbc.cells.prints`). A mosaic and the pictures in it look different to it, and so does a part
and its whole.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wbc.cells.prints import FREQUENCIES, SIDE_PX, brightness, print_of
from wbc.datasets.crops import PATCH_UM, Crops
from wbc.datasets.labels import LabelledPicture, Picture, opened

# Other fields of one slide differ in 0.29 or more of the bits, one field photographed twice in 0.08, augmented copies
# of one picture in as few as 0.05 (docs/measurements.md).
MOST_DIFFERENT = 0.12
# Crops of other cells differ in 0.196 or more, of one cell photographed twice in 0 to 0.28.
MOST_DIFFERENT_CELLS = 0.16
MOST_NAMED = 5
BLOCK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Prints:
    """What tells N pictures or cells apart: digests of their files or pixels, and hashes ±1 float32 (N,8,B) in eight
    orientations.

    `names` are what messages call them, `sources` the slide, or the field of cells, that each is from ("": not known).
    """

    names: tuple[str, ...]
    digests: tuple[str, ...]
    sources: tuple[str, ...]
    hashes: NDArray[np.float32]
    most_different: float = MOST_DIFFERENT


def prints_of(pictures: Sequence[LabelledPicture]) -> Prints:
    """The prints of pictures. Raises OSError where one cannot be read."""
    digests = tuple(hashlib.sha256(p.path.read_bytes()).hexdigest() for p in pictures)
    hashes = [picture_hashes(_brightness(p.path)) for p in pictures]
    names, slides = tuple(str(p.path) for p in pictures), tuple(p.source for p in pictures)
    return Prints(names, digests, slides, _stacked(hashes))


def prints_of_cells(crops: Crops) -> Prints:
    """The prints of single cells; of pictures that are seen whole, those of pictures."""
    digests = tuple(hashlib.sha256(pixels).hexdigest() for pixels in crops.pixels)
    hashes = [picture_hashes(brightness(Image.fromarray(pixels))) for pixels in crops.pixels]
    limit = MOST_DIFFERENT_CELLS if crops.patch_um == PATCH_UM else MOST_DIFFERENT
    names = crops.names or tuple(f"cell {i}" for i in range(1, len(digests) + 1))
    return Prints(names, digests, crops.sources or ("",) * len(names), _stacked(hashes), limit)


def joined_prints(parts: Iterable[Prints]) -> Prints:
    """The prints of one side that is of several parts; the strictest limit is for all."""
    parts = list(parts)
    names, digests, sources = (
        tuple(entry for part in parts for entry in getattr(part, column)) for column in ("names", "digests", "sources")
    )
    limit = min((part.most_different for part in parts), default=MOST_DIFFERENT)
    return Prints(names, digests, sources, np.concatenate([_stacked([]), *(part.hashes for part in parts)]), limit)


def _stacked(hashes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack([*hashes, np.zeros((8, FREQUENCIES**2 - 1), np.float32)])[:-1]


def _brightness(path: Picture) -> NDArray[np.float32]:
    with opened(path) as picture:
        picture.draft("L", (SIDE_PX * 4, SIDE_PX * 4))  # a JPEG is decoded no finer than is needed
        return brightness(picture)


def picture_hashes(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """The hashes ±1 float32 (8,B) of a picture's brightness (32,32), turned and mirrored in all eight ways."""
    ways = [np.rot90(way, quarter) for way in (light, light[:, ::-1]) for quarter in range(4)]
    return np.where(np.stack([print_of(way) for way in ways]), 1, -1).astype(np.float32)


def differences(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """The parts of bits (N,M) in which hashes (N,8,B) and (M,8,B) differ, in the orientations that agree most."""
    upright = one[:, 0]
    alike = np.max([upright @ other[:, way].T for way in range(8)], 0)
    return np.asarray((1 - alike / one.shape[2]) / 2, np.float32)


def shared_sources(prints: Prints, others: Prints) -> Iterator[tuple[int, int, str]]:
    """Pictures or cells, one of each side by their index, that show the same or are of one source, and how that is
    known."""
    digests, sources = np.array(others.digests), np.array(others.sources)
    limit = min(prints.most_different, others.most_different)
    for start in range(0, len(prints.digests), BLOCK):
        block = slice(start, start + BLOCK)
        near = differences(prints.hashes[block], others.hashes)
        files = np.array(prints.digests[block])[:, None] == digests
        own = np.array(prints.sources[block])[:, None]
        for i, j in np.argwhere((near <= limit) | files | ((own == sources) & (sources != ""))):
            if files[i, j]:
                reason = "the same file"
            elif near[i, j] <= limit:
                reason = f"{near[i, j]:.0%} of their hashes differ"
            else:
                reason = f"both of {sources[j]}"
            yield start + int(i), int(j), reason


def check_apart(sides: Mapping[str, Prints]) -> None:
    """Raises ValueError, naming pairs, where the same source stands on two sides of a split, given by their names."""
    for (a, one), (b, other) in combinations(sides.items(), 2):
        pairs = list(shared_sources(one, other))
        if pairs:
            told = [f"{one.names[i]} and {other.names[j]} ({reason})" for i, j, reason in pairs[:MOST_NAMED]]
            more = [f"and {len(pairs) - MOST_NAMED} more"] if len(pairs) > MOST_NAMED else []
            raise ValueError(f"{a} and {b} share sources, {len(pairs)} pairs: {'; '.join([*told, *more])}")


def divide(
    pictures: Sequence[LabelledPicture], share: float, seed: int
) -> tuple[list[LabelledPicture], list[LabelledPicture]]:
    """Pictures in two parts at random, the second about a `share` of them; the same source is never in both."""
    group = _groups(pictures)
    order = np.random.default_rng(seed).permutation(np.unique(group))
    sizes = np.cumsum([(group == number).sum() for number in order])
    held = set(order[: int(np.searchsorted(sizes, share * len(pictures), "right"))].tolist())
    first = [p for p, number in zip(pictures, group, strict=True) if number not in held]
    return first, [p for p, number in zip(pictures, group, strict=True) if number in held]


def _groups(pictures: Sequence[LabelledPicture]) -> NDArray[np.int64]:
    """A number for each picture: equal for those that are one source, also by way of others."""
    number, prints = np.arange(len(pictures)), prints_of(pictures)
    for i, j, _ in shared_sources(prints, prints):
        number[number == max(number[i], number[j])] = min(number[i], number[j])
    return number
