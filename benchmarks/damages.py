"""The damages that `benchmarks.attack` does: to the bytes of a file, or to a slide's folder. Seeded, so repeatable."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from upath import UPath

from wbc.storage.images import read_field

Rng = np.random.Generator


def hole(content: bytearray, rng: Rng) -> bytes:
    """A page or more of zeros, as a lost block of a disk leaves."""
    length = int(rng.choice([512, 4096, 16_384]))
    start = int(rng.integers(0, len(content)))
    content[start : start + length] = bytes(len(content[start : start + length]))
    return bytes(content)


def cut_and_filled(content: bytearray, rng: Rng) -> bytes:
    """The rest is zeros: a copy that was cut off but keeps its length."""
    length = int(rng.integers(1, len(content)))
    return bytes(content[:length]).ljust(len(content), b"\0")


def cut_off(content: bytearray, rng: Rng) -> bytes:
    """The rest is missing."""
    return bytes(content[: int(rng.integers(0, len(content)))])


def one_bit(content: bytearray, rng: Rng) -> bytes:
    """One bit is another."""
    content[int(rng.integers(0, len(content)))] ^= 1 << int(rng.integers(0, 8))
    return bytes(content)


def noise(content: bytearray, rng: Rng) -> bytes:
    """64 bytes are others."""
    start = int(rng.integers(0, max(1, len(content) - 64)))
    content[start : start + 64] = rng.bytes(len(content[start : start + 64]))
    return bytes(content)


def pages_swapped(content: bytearray, rng: Rng) -> bytes:
    """Two neighbouring blocks of 4,096 bytes stand in each other's place."""
    start = int(rng.integers(0, max(1, len(content) - 8192)))
    middle, end = start + 4096, start + 8192
    return bytes(content[:start] + content[middle:end] + content[start:middle] + content[end:])


def wrong_suffix(field: Path, rng: Rng) -> None:
    """The file has the suffix of another format."""
    field.rename(field.with_suffix(str(rng.choice([".jpg", ".png", ".tif", ".bmp", ".jfif"]))))


def copied(field: Path, rng: Rng) -> None:
    """The same bytes again under another name."""
    shutil.copy(field, field.with_name(f"twin{field.suffix}"))


def linked(field: Path, rng: Rng) -> None:
    """The same file again by a link, hard or symbolic."""
    twin = field.with_name(f"twin{field.suffix}")
    twin.hardlink_to(field) if rng.random() < 0.5 else twin.symlink_to(field)


def saved_as_bmp(field: Path, rng: Rng) -> None:
    """The same pixels again, in another format."""
    Image.fromarray(read_field(UPath(field))).save(field.with_name("twin.bmp"))


def no_picture(field: Path, rng: Rng) -> None:
    """Text, or nothing, in place of the picture."""
    field.write_bytes(b"not a picture\n" * int(rng.integers(0, 3)))


def two_pages(field: Path, rng: Rng) -> None:
    """A TIFF of two pages in place of the picture."""
    pixels = read_field(UPath(field))
    field.unlink()
    pages = [Image.fromarray(pixels), Image.fromarray(pixels[::-1])]
    pages[0].save(field.with_suffix(".tif"), save_all=True, append_images=pages[1:])


def a_folder(field: Path, rng: Rng) -> None:
    """A folder that has the picture's name and holds it."""
    content = field.read_bytes()
    field.unlink()
    field.mkdir()
    (field / field.name).write_bytes(content)


def leads_nowhere(field: Path, rng: Rng) -> None:
    """A link to a file that is not there, or to itself."""
    field.unlink()
    field.symlink_to(rng.choice(["gone.jpg", field.name]))


def lost(content: bytearray, rng: Rng) -> bytes | None:
    """The file is gone."""
    return None


TARGETS = ("field", "folder", "OUT")
ATTACKS: dict[str, tuple[Any, ...]] = {
    "field": (hole, cut_and_filled, cut_off, one_bit, noise, pages_swapped),
    "folder": (wrong_suffix, copied, linked, saved_as_bmp, no_picture, two_pages, a_folder, leads_nowhere),
    "OUT": (lost, hole, cut_and_filled, cut_off, one_bit, noise),
}

# Formats of fields in which a kind of damage may leave pixels that somebody might have photographed: those that store
# pixels as they are, or in codes without a checksum. Everything else must be noticed.
_NO_CHECKSUM, _HUFFMAN = ("bmp", "tiff", "lzw tiff"), ("jpeg", "progressive jpeg", "grey jpeg", "jpeg tiff")
MAY_PASS_UNSEEN: dict[str, tuple[str, ...]] = {
    "one_bit": (*_NO_CHECKSUM, *_HUFFMAN),
    "noise": (*_NO_CHECKSUM, *_HUFFMAN),
    "pages_swapped": _NO_CHECKSUM,
}
