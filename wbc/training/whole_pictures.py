"""Whole labelled pictures as a detector's samples, as Detectron2 and Wang 2021 draw them: scaled and flipped."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from wbc.datasets.labels import LabelledPicture, opened
from wbc.datasets.steady import arrays_digest, steady
from wbc.training.detector_data import BoxData, StoreData, of_one_scale, places_of, read_boxes


@dataclass(frozen=True, slots=True)
class WholeSettings:
    """A picture's short edge gets `short_px`, its long edge is scaled along; `flip` is each mirror image's chance."""

    short_px: int = 800
    flip: float = 0.5


@dataclass(frozen=True, slots=True)
class Pictures:
    """One data set: its pictures, the labels of their boxes from 1 on, how often it is drawn, its scale once scaled."""

    pictures: list[LabelledPicture]
    labels: list[NDArray[np.int64]]
    weight: float
    um_per_px: float


def load_whole(
    specs: Sequence[BoxData | StoreData], root: Path, classes: Sequence[str], settings: WholeSettings, seed: int
) -> "WholePictures":
    """The data sets of a config, their annotations read, their pictures digested: pixels are read when they are drawn.

    Raises ValueError where a label is no class, or a data set shows no scale or changes while it is read.
    """
    sets, files = [], hashlib.sha256()
    for spec in specs:
        with steady(*places_of(spec, root)):
            pictures = read_boxes(spec, root)
            for picture in pictures:
                files.update(hashlib.sha256(picture.path.read_bytes()).digest())
        for scale, alike in of_one_scale(pictures, spec.um_per_px).items():
            labels = [_numbers(picture, classes) for picture in alike]
            weight, scaled = spec.weight * len(alike) / len(pictures), scale * _short_edge(alike) / settings.short_px
            sets.append(Pictures(alike, labels, weight, scaled))
    return WholePictures(sets, settings, seed, files.hexdigest())


def _numbers(picture: LabelledPicture, classes: Sequence[str]) -> NDArray[np.int64]:
    """The labels' numbers from 1. Raises ValueError where one is not in `classes`."""
    if unknown := sorted(set(picture.labels) - set(classes)):
        raise ValueError(f"{picture.path}: labels {unknown} are none of {list(classes)}")
    return np.array([classes.index(label) + 1 for label in picture.labels], np.int64)


def _short_edge(pictures: list[LabelledPicture]) -> float:
    """The median, in px."""
    sides = []
    for picture in pictures:
        with opened(picture.path) as file:
            sides.append(min(file.size))
    return float(np.median(sides))


class WholePictures(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Endless pictures: the i-th depends on seed and i alone.

    Pixels float32 (3,H,W) in 0..1, and a target of boxes (N,4) and labels (N,). `files` is a digest of the pictures'
    files.
    """

    def __init__(self, sets: Sequence[Pictures], settings: WholeSettings, seed: int, files: str) -> None:
        self.sets, self.settings, self.seed, self.files = sets, settings, seed, files
        self.stamps = {p.path: p.path.stat().st_mtime_ns for part in sets for p in part.pictures}
        weights = np.array([part.weight for part in sets])
        self.weights = weights / weights.sum()

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Picture `index` and its target as torchvision's detectors take it."""
        picture, labels, rng = self._drawn(index)
        if picture.path.stat().st_mtime_ns != self.stamps[picture.path]:
            raise ValueError(f"{picture.path} changed while a model learns from it")
        with opened(picture.path) as file:
            upright = ImageOps.exif_transpose(file).convert("RGB")
        factor = self.settings.short_px / min(upright.size)
        w, h = (round(side * factor) for side in upright.size)
        pixels, boxes = (
            np.asarray(upright.resize((w, h), Image.Resampling.BILINEAR)),
            picture.boxes * np.float32(factor),
        )
        if rng.random() < self.settings.flip:
            pixels, boxes = pixels[:, ::-1], np.stack([w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], 1)
        if rng.random() < self.settings.flip:
            pixels, boxes = pixels[::-1], np.stack([boxes[:, 0], h - boxes[:, 3], boxes[:, 2], h - boxes[:, 1]], 1)
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)}
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255, target

    def pictures(self, index: int) -> list[str]:
        """The picture of sample `index`."""
        return [str(self._drawn(index)[0].path)]

    @property
    def um_per_px(self) -> float:
        """The scale of what is drawn: the mean of the data sets', by how often they are."""
        return float(np.average([part.um_per_px for part in self.sets], weights=self.weights))

    @property
    def labels_shown(self) -> set[int]:
        """The labels that any picture has."""
        return {int(label) for part in self.sets for labels in part.labels for label in labels}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pictures' files with their boxes and labels."""
        pairs = [(p.boxes, n) for part in self.sets for p, n in zip(part.pictures, part.labels, strict=True)]
        boxes = arrays_digest(array for pair in pairs for array in pair)
        return hashlib.sha256(f"{self.files} {boxes}".encode()).hexdigest()

    def _drawn(self, index: int) -> tuple[LabelledPicture, NDArray[np.int64], np.random.Generator]:
        rng = np.random.default_rng([self.seed, index])
        part = self.sets[int(rng.choice(len(self.sets), p=self.weights))]
        i = int(rng.integers(len(part.pictures)))
        return part.pictures[i], part.labels[i], rng
