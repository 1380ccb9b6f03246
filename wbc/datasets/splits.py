"""Splits by source: which pictures show the same, and whether any of them, or their slide, stands on two sides.

Pictures are the same where their files are, or where their perceptual hashes nearly are in one of the eight ways to
turn and mirror a picture: signs of the lowest frequencies of its brightness against their median (pHash; Zauner 2010,
"Implementation and benchmarking of perceptual image hash functions", there 8×8 frequencies, here 16×16). A mosaic and
the pictures in it look different to it, and so does a part and its whole.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from wbc.datasets.labels import LabelledPicture, Picture, opened

SIDE_PX, FREQUENCIES = 32, 16
# Other fields of one slide differ in 0.29 or more of the bits, one field photographed twice in 0.08, augmented copies
# of one picture in as few as 0.05 (docs/measurements.md).
MOST_DIFFERENT = 0.12
MOST_NAMED = 5
BLOCK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Prints:
    """What tells pictures apart: each one's file digest, and hashes ±1 float32 (N,8,B) in eight orientations."""

    digests: tuple[str, ...]
    hashes: NDArray[np.float32]


def prints_of(pictures: Sequence[LabelledPicture]) -> Prints:
    """The prints of pictures. Raises OSError where one cannot be read."""
    digests = tuple(hashlib.sha256(p.path.read_bytes()).hexdigest() for p in pictures)
    hashes = [picture_hashes(_brightness(p.path)) for p in pictures]
    return Prints(digests, np.stack([*hashes, np.zeros((8, FREQUENCIES**2 - 1), np.float32)])[:-1])


def _brightness(path: Picture) -> NDArray[np.float32]:
    with opened(path) as picture:
        picture.draft("L", (SIDE_PX * 4, SIDE_PX * 4))  # a JPEG is decoded no finer than is needed
        return brightness(picture)


def brightness(picture: Image.Image) -> NDArray[np.float32]:
    """A picture's brightness at 32×32 px, float32."""
    return np.asarray(picture.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), np.float32)


def picture_hashes(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """The hashes ±1 float32 (8,B) of a picture's brightness (32,32), turned and mirrored in all eight ways."""
    ways = [np.rot90(way, quarter) for way in (light, light[:, ::-1]) for quarter in range(4)]
    low = np.stack([dctn(way, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:] for way in ways])
    return np.where(low > np.median(low, 1, keepdims=True), 1, -1).astype(np.float32)


def differences(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """The parts of bits (N,M) in which hashes (N,8,B) and (M,8,B) differ, in the orientations that agree most."""
    upright = one[:, 0]
    alike = np.max([upright @ other[:, way].T for way in range(8)], 0)
    return np.asarray((1 - alike / one.shape[2]) / 2, np.float32)


def shared_sources(
    one: Sequence[LabelledPicture], other: Sequence[LabelledPicture], prints: Prints, others: Prints
) -> Iterator[tuple[int, int, str]]:
    """Pictures, one of each side by their index, that show the same or are of one slide, and how that is known.

    `prints` are of one side, `others` of the other.
    """
    digests, slides = np.array(others.digests), np.array([p.slide_id for p in other])
    for start in range(0, len(one), BLOCK):
        near = differences(prints.hashes[start : start + BLOCK], others.hashes)
        files = np.array(prints.digests[start : start + BLOCK])[:, None] == digests
        own = np.array([p.slide_id for p in one[start : start + BLOCK]])[:, None]
        for i, j in np.argwhere((near <= MOST_DIFFERENT) | files | ((own == slides) & (slides != ""))):
            if files[i, j]:
                reason = "the same file"
            elif near[i, j] <= MOST_DIFFERENT:
                reason = f"{near[i, j]:.0%} of their hashes differ"
            else:
                reason = f"both of slide {slides[j]}"
            yield start + int(i), int(j), reason


def check_apart(sides: Mapping[str, Sequence[LabelledPicture]]) -> None:
    """Raises ValueError, naming pairs, where the same source stands on two sides of a split, given by their names."""
    prints = {name: prints_of(pictures) for name, pictures in sides.items()}
    for a, b in combinations(sides, 2):
        pairs = list(shared_sources(sides[a], sides[b], prints[a], prints[b]))
        if pairs:
            told = [f"{sides[a][i].path} and {sides[b][j].path} ({reason})" for i, j, reason in pairs[:MOST_NAMED]]
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
    for i, j, _ in shared_sources(pictures, pictures, prints, prints):
        number[number == max(number[i], number[j])] = min(number[i], number[j])
    return number
