"""Training pictures laid together from many labelled ones, each epoch another way."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wbc.cells.geometry import RED_CELL_UM
from wbc.datasets.augment import Jitter, add_debris, jitter_optics, jitter_stain, shear, turn
from wbc.datasets.labels import LabelledPicture, opened

LARGEST_RED_CELL_PX = 62


@dataclass(frozen=True, slots=True)
class Source:
    """A data set in memory: pixels uint8 (H,W,3), boxes and labels a picture, one scale, and how often it is drawn.

    `platelets` are cut-outs uint8 (h,w,3) of single platelets, each in the middle two thirds of its cut-out. `names`
    are the pictures' addresses, where they have any.
    """

    pixels: list[NDArray[np.uint8]]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    um_per_px: float
    weight: float
    platelets: list[NDArray[np.uint8]] = field(default_factory=list)
    platelet_label: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MosaicSettings:
    """`size_px` of the square canvas; red cells drawn from `smallest` to `largest` px.

    A cut cell stays a cell where at least the fraction `visible` of its box is left. A part `giant_platelets` of the
    pictures gets one or two platelets as large as red cells, which the data sets hardly have.
    """

    size_px: int = 640
    smallest_red_cell_px: float = 25.0
    largest_red_cell_px: float = 50.0
    visible: float = 0.35
    giant_platelets: float = 0.0


@dataclass(frozen=True, slots=True)
class LabelledPixels:
    """A drawn picture uint8 (H,W,3), its boxes float32 (N,4) in its px and labels (N,), and what it was made of."""

    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    pictures: tuple[str, ...]


def load_source(pictures: list[LabelledPicture], um_per_px: float, classes: list[str], weight: float) -> Source:
    """Read a data set into memory, no finer than the largest red cell a mosaic draws; labels count from 1.

    Raises ValueError where a label is not in `classes`.
    """
    coarser = min(1.0, LARGEST_RED_CELL_PX * um_per_px / RED_CELL_UM)
    number = {name: i for i, name in enumerate(classes, 1)}
    pixels, boxes, labels = [], [], []
    for p in pictures:
        unknown = set(p.labels) - set(number)
        if unknown:
            raise ValueError(f"{p.path}: labels {sorted(unknown)} are none of {classes}")
        with opened(p.path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
        w, h = picture.size
        kernel = Image.Resampling.BOX if coarser < 0.6 else Image.Resampling.LANCZOS
        small = picture.resize((round(w * coarser), round(h * coarser)), kernel)
        pixels.append(np.asarray(small))
        boxes.append(p.boxes * np.float32(coarser))
        labels.append(np.array([number[label] for label in p.labels], np.int64))
    label = number.get("platelet", 0)
    cut_outs = [c for i in range(len(pixels)) for c in _cut_out(pixels[i], boxes[i], labels[i] == label)]
    names = tuple(str(p.path) for p in pictures)
    return Source(pixels, boxes, labels, um_per_px / coarser, weight, cut_outs, label, names)


def _cut_out(
    pixels: NDArray[np.uint8], boxes: NDArray[np.float32], which: NDArray[np.bool_]
) -> list[NDArray[np.uint8]]:
    """Windows 1.5 times the size of the wanted boxes, of those that lie inside the picture and meet no other box."""
    cut_outs = []
    for i in np.flatnonzero(which):
        middle, half = (boxes[i, :2] + boxes[i, 2:]) / 2, 0.75 * (boxes[i, 2:] - boxes[i, :2])
        x0, y0 = np.floor(middle - half).astype(int)
        x1, y1 = np.ceil(middle + half).astype(int)
        others = np.delete(boxes, i, 0)
        apart = (others[:, 0] > x1) | (others[:, 2] < x0) | (others[:, 1] > y1) | (others[:, 3] < y0)
        if min(x0, y0) >= 0 and x1 <= pixels.shape[1] and y1 <= pixels.shape[0] and apart.all():
            cut_outs.append(pixels[y0:y1, x0:x1])
    return cut_outs


def add_giant_platelets(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    source: Source,
    red_cell_px: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """One or two of the source's platelets, enlarged to 0.6 to 1.4 red cells, where the picture has room for them.

    They are laid over it as light goes through both: the picture times the share of light that the platelet lets pass.
    """
    pixels = pixels.copy()
    for _ in range(int(rng.integers(1, 3))):
        platelet = source.platelets[int(rng.integers(len(source.platelets)))]
        factor = red_cell_px * rng.uniform(0.6, 1.4) / (max(platelet.shape[:2]) / 1.5)
        w, h = (max(8, round(side * factor)) for side in platelet.shape[1::-1])
        if w >= pixels.shape[1] or h >= pixels.shape[0]:
            continue
        window = np.asarray(Image.fromarray(platelet).resize((w, h), Image.Resampling.BICUBIC), np.float32)
        passes = np.clip(window / np.percentile(window.reshape(-1, 3), 80, axis=0), 0, 1) ** rng.uniform(1.0, 2.0)
        y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
        inside = np.clip((1 - np.hypot(x, y)) / 0.2, 0, 1)[..., None]
        for _ in range(10):
            left, top = int(rng.integers(pixels.shape[1] - w)), int(rng.integers(pixels.shape[0] - h))
            box = np.array([left + w / 6, top + h / 6, left + w * 5 / 6, top + h * 5 / 6], np.float32)
            if len(boxes) and (np.minimum(boxes[:, 2:], box[2:]) > np.maximum(boxes[:, :2], box[:2])).all(1).any():
                continue
            under = pixels[top : top + h, left : left + w]
            under[:] = (under * (1 - inside * (1 - passes))).astype(np.uint8)
            boxes, labels = np.concatenate([boxes, box[None]]), np.append(labels, source.platelet_label)
            break
    return pixels, boxes, labels


def draw_piece(
    source: Source, red_cell_px: float, settings: MosaicSettings, jitter: Jitter, rng: np.random.Generator
) -> LabelledPixels:
    """One picture of `source`, turned, sheared, stained anew and scaled so that red cells measure `red_cell_px`."""
    i = int(rng.integers(len(source.pixels)))
    pixels, boxes = turn(source.pixels[i], source.boxes[i], rng)
    if rng.random() < 0.3:
        pixels, boxes = shear(pixels, boxes, rng.uniform(-jitter.shear, jitter.shear))
    factor = red_cell_px * source.um_per_px / RED_CELL_UM
    h, w = round(pixels.shape[0] * factor), round(pixels.shape[1] * factor)
    scale = np.array([w / pixels.shape[1], h / pixels.shape[0]] * 2, np.float32)
    piece = np.asarray(Image.fromarray(pixels).resize((w, h), Image.Resampling.BILINEAR))
    boxes, labels = boxes * scale, source.labels[i]
    if source.platelets and rng.random() < settings.giant_platelets:
        piece, boxes, labels = add_giant_platelets(piece, boxes, labels, source, red_cell_px, rng)
    return LabelledPixels(jitter_stain(piece, jitter, rng), boxes, labels, source.names[i : i + 1])


def draw_mosaic(
    sources: list[Source], settings: MosaicSettings, jitter: Jitter, rng: np.random.Generator
) -> LabelledPixels:
    """A canvas uint8 (S,S,3) of rows of pictures, with their boxes in canvas pixels.

    Half of the canvases hold one data set, as a slide does; the others mix them.
    """
    size = settings.size_px
    canvas = np.zeros((size, size, 3), np.uint8)
    weights = np.array([s.weight for s in sources])
    weights /= weights.sum()
    alone = int(rng.choice(len(sources), p=weights)) if rng.random() < 0.5 else None
    all_boxes, all_labels, pictures = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)], list[str]()
    y = 0
    while y < size:
        red_cell_px = np.exp(rng.uniform(np.log(settings.smallest_red_cell_px), np.log(settings.largest_red_cell_px)))
        height, x, spare = min(int(4.3 * red_cell_px), size - y), 0, int(rng.integers(0, 60))
        while x < size:
            source = sources[alone if alone is not None else int(rng.choice(len(sources), p=weights))]
            drawn = draw_piece(source, red_cell_px * rng.uniform(0.92, 1.08), settings, jitter, rng)
            top = int(rng.integers(0, max(1, drawn.pixels.shape[0] - height + 1)))
            left = spare if x == 0 and drawn.pixels.shape[1] > 2 * spare else 0
            piece = drawn.pixels[top : top + height, left : left + size - x]
            boxes = drawn.boxes - np.array([left, top] * 2, np.float32)
            boxes, labels = cut(boxes, drawn.labels, piece.shape[:2], settings.visible)
            canvas[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
            all_boxes.append(boxes + np.array([x, y] * 2, np.float32))
            all_labels.append(labels)
            pictures += drawn.pictures
            x += piece.shape[1]
        y += height
    canvas = jitter_optics(add_debris(canvas, rng), jitter, rng)
    return LabelledPixels(canvas, np.concatenate(all_boxes), np.concatenate(all_labels), tuple(pictures))


def cut(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], shape: tuple[int, ...], visible: float
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes clipped to a picture of (height, width), without those of which less than a fraction `visible` is left."""
    h, w = shape[:2]
    clipped = np.clip(boxes, 0, np.array([w, h, w, h], np.float32))
    area = np.maximum((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), 1e-6)
    left = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    is_kept = (left >= visible * area) & ((clipped[:, 2:] - clipped[:, :2]).min(1, initial=1e9) >= 3)
    return clipped[is_kept], labels[is_kept]
