"""Pixels + detector -> Detections: scaled, tiled, batched over tiles and fields, back in field pixels, merged."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wbc.cells.first_look import LOOK_UM_PER_PX, find_places
from wbc.cells.geometry import Boxes, balanced_size, merge, tile_grid
from wbc.cells.tiles import BATCH_PX, GPU_BATCH_PX, TileSettings
from wbc.cells.views import MOST_OF_GRID, REACH_UM, GridView, WindowView, area_of, windows_over
from wbc.models.registry import LoadedModel
from wbc.models.roi_align import padded
from wbc.sought import Sought, left_out
from wbc.types import Detections, Tile

Scaled = NDArray[np.uint8] | Tensor  # a field at the detector's scale uint8 (H,W,3), here or on its device
MERGE_IOU = 0.5
MOST_LOOKS = 3  # a cell that a window cuts may be cut again by its own, which was laid over a part of it


def detect(
    fields: Sequence[NDArray[np.uint8]],
    model: LoadedModel,
    um_per_px: float,
    min_score: float,
    settings: TileSettings = TileSettings(),
    batch_px: int | None = None,
) -> list[Detections]:
    """The cells of each field uint8 (H,W,3), boxes in field pixels, scores at least `min_score`.

    Each tile answers for the cells in its core, and a box that an inner edge cuts is dropped (a neighbour has that cell
    whole); then doubles of neighbouring tiles are merged class by class. The grid leaves no trace in the result but for
    what a tile's edge does to scores near it. Were the surer of two sightings to count all over an overlap, more cells
    would be found there than elsewhere. `um_per_px` is the fields' scale; `batch_px` bounds the
    pixels of one forward pass, which else are as many as suit the model's device.

    What is not sought (`settings.sought`) is left out. Where white cells alone are sought, a first look proposes
    places, and windows over them are looked at instead of the grid, unless it is unsure or saves little. A cell that a
    window cuts gets one of its own.
    """
    batch_px = batch_px or suited_px(model)
    factor = um_per_px / model.card.um_per_px
    # What proposes windows looks at a field's pixels here; else a GPU scales it sooner, and cuts its tiles.
    there = model.device.type == "cuda" and settings.sought != "white"
    scaled = [rescale_on(pixels, factor, model.device) if there else rescale(pixels, factor) for pixels in fields]
    views = [_view(pixels, model, settings) for pixels in scaled]
    cells, cut = _look(scaled, views, model, settings.sought, (min_score, batch_px))
    for _ in range(MOST_LOOKS - 1):
        if not any(map(len, cut)):
            break
        views = [_over(c.boxes, pixels, model, settings) for c, pixels in zip(cut, scaled, strict=True)]
        more, cut = _look(scaled, views, model, settings.sought, (min_score, batch_px))
        cells = [Detections.concatenate([*parts]) for parts in zip(cells, more, strict=True)]
    merged = [merge(of_field, MERGE_IOU) for of_field in cells]
    return [_back(m, s.shape, field.shape) for m, s, field in zip(merged, scaled, fields, strict=True)]


def suited_px(model: LoadedModel) -> int:
    """The most pixels of a forward pass on the model's device."""
    return GPU_BATCH_PX if model.device.type == "cuda" else BATCH_PX


def _look(
    scaled: Sequence[Scaled],
    views: Sequence[GridView | WindowView],
    model: LoadedModel,
    sought: Sought,
    limits: tuple[float, int],
) -> tuple[list[Detections], list[Detections]]:
    """The cells sought that the tiles of each field's view answer for, and those that windows cut; in scaled pixels.

    `limits` are the lowest score and the most pixels of a forward pass.
    """
    min_score, batch_px = limits
    cells: dict[int, list[Detections]] = defaultdict(list)
    cut: dict[int, list[Detections]] = defaultdict(list)
    work = [(i, tile) for i, view in enumerate(views) for tile in view.tiles]
    for batch in _batches(work, batch_px, in_few_sizes=model.device.type != "cpu"):
        outputs = _run_in_memory([_cut(scaled[i], tile) for i, tile in batch], model, min_score)
        for (i, tile), in_tile in zip(batch, outputs, strict=True):
            placed = sought_alone(in_tile.shifted(tile.x, tile.y), model, sought)
            cells[i].append(placed.take(views[i].answers(placed.boxes, tile)))
            cut[i].append(placed.take(views[i].cuts(placed.boxes, tile)))
    every = range(len(scaled))
    return [Detections.concatenate(cells[i]) for i in every], [Detections.concatenate(cut[i]) for i in every]


def _view(scaled: Scaled, model: LoadedModel, settings: TileSettings) -> GridView | WindowView:
    """How a field at the detector's scale is looked at: in windows where these do for what is sought, else whole."""
    look_factor = model.card.um_per_px / LOOK_UM_PER_PX
    # Platelets lie everywhere: windows over them would cover the field.
    places = find_places(rescale(np.asarray(scaled), look_factor)) if settings.sought == "white" else None
    return _over(None if places is None else places / np.float32(look_factor), scaled, model, settings)


def _over(places: Boxes | None, scaled: Scaled, model: LoadedModel, settings: TileSettings) -> GridView | WindowView:
    """Windows over places (N,4) of a field; where there are none to tell, or they save little, the whole of it."""
    height, width = scaled.shape[:2]
    tiles, reach_px = grid(scaled.shape, model, settings), REACH_UM / model.card.um_per_px
    windows = None if places is None else windows_over(places, height, width, reach_px)
    if windows is None or area_of(windows) > MOST_OF_GRID * area_of(tiles):
        return GridView(tiles, height, width, _overlap(model, settings), settings.margin_px)
    return WindowView(windows, height, width, settings.margin_px)


def sought_alone(cells: Detections, model: LoadedModel, sought: Sought) -> Detections:
    """The cells of the classes that are sought."""
    others = [label for label, name in enumerate(model.card.classes, 1) if name in left_out(sought)]
    return cells.take(~np.isin(cells.labels, others))


def _back(cells: Detections, scaled: tuple[int, ...], field: tuple[int, ...]) -> Detections:
    """Cells of the scaled picture, of shape (H,W,...), in the field that it was made of."""
    height, width = field[:2]
    return cells.scaled(width / scaled[1], height / scaled[0], height, width)


def rescale(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """A picture uint8 (H,W,3) `factor` times as large, antialiased; itself where that changes no side."""
    h, w = pixels.shape[:2]
    height, width = max(1, round(h * factor)), max(1, round(w * factor))
    if (height, width) == (h, w):
        return pixels
    # torch takes a sixth of Pillow's time for channels that lie side by side, and differs by 1 of 255 at most.
    rows = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)[None]
    scaled = nn.functional.interpolate(rows, (height, width), mode="bilinear", antialias=True)
    return np.asarray(scaled[0].permute(1, 2, 0).numpy())


@torch.no_grad()
def rescale_on(pixels: NDArray[np.uint8], factor: float, device: torch.device) -> Tensor:
    """`rescale` on a device: uint8 (H,W,3) there, equal but for 1 of 255 in a few of a thousand values.

    As on a CPU, rows come first, and are rounded before columns.
    """
    h, w = pixels.shape[:2]
    height, width = max(1, round(h * factor)), max(1, round(w * factor))
    there = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(device)
    if (height, width) == (h, w):
        return there
    planes = there.permute(2, 0, 1)[None].float()
    for size in ((h, width), (height, width)):
        planes = nn.functional.interpolate(planes, size, mode="bilinear", antialias=True)
        planes = planes.add_(0.5).floor_().clamp_(0, 255)
    return planes[0].byte().permute(1, 2, 0)


def grid(shape: tuple[int, ...], model: LoadedModel, settings: TileSettings) -> list[Tile]:
    """The tiles of a picture of `shape` (H,W,...) at the detector's scale: as few and as even as their limits allow."""
    overlap, step = _overlap(model, settings), settings.step_px
    strides = [balanced_size(length, settings.tile_px, overlap) - overlap for length in shape[:2]]
    height, width = (overlap + math.ceil(stride / step) * step for stride in strides)
    y, x = (round(start / step) * step for start in settings.origin)
    return tile_grid(shape[0], shape[1], (height, width), overlap, (y, x))


def _overlap(model: LoadedModel, settings: TileSettings) -> int:
    """By how many of the detector's pixels neighbouring tiles overlap."""
    return round(settings.overlap_um / model.card.um_per_px + 2 * settings.margin_px)


def _run_in_memory(tiles: Sequence[Scaled], model: LoadedModel, min_score: float) -> list[Detections]:
    """`run_tiles`, by half where the memory does not do for all at once: others may have the rest of a GPU's."""
    try:
        return run_tiles(tiles, model, min_score)
    except torch.OutOfMemoryError:
        if len(tiles) == 1:
            raise
    torch.cuda.empty_cache()  # beyond the error, which holds what was allocated
    half = len(tiles) // 2
    return [found for part in (tiles[:half], tiles[half:]) for found in _run_in_memory(part, model, min_score)]


@torch.inference_mode()
def run_tiles(tiles: Sequence[Scaled], model: LoadedModel, min_score: float) -> list[Detections]:
    """The model on tiles of its own scale, uint8 (H,W,3), or (3,H,W) on its device: boxes in tile pixels.

    Scores are at least `min_score`.
    """
    inputs = [_to_tensor(t, model.device) for t in tiles]
    results = []
    for output in model.module(inputs):
        boxes, scores, labels = (output[k].float().cpu().numpy() for k in ("boxes", "scores", "labels"))
        kept = (scores >= min_score) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        results.append(Detections(boxes[kept], scores[kept], labels[kept].astype(np.int64)))
    return results


def _to_tensor(tile: Scaled, device: torch.device) -> Tensor:
    if isinstance(tile, np.ndarray):
        tile = torch.from_numpy(np.array(tile.transpose(2, 0, 1), order="C")).to(device)
    return tile.float().div_(255)


def _cut(scaled: Scaled, tile: Tile) -> Scaled:
    """A tile (h,w,3), or, of what is on a device, its planes (3,h,w)."""
    cut = scaled[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
    return cut if isinstance(cut, np.ndarray) else cut.permute(2, 0, 1)


def _batches(work: list[tuple[int, Tile]], batch_px: int, in_few_sizes: bool) -> list[list[tuple[int, Tile]]]:
    """Tiles of one shape together, as the model pads them: none is padded to another's size.

    In few sizes each batch has a power of two of tiles. For each number that it has not met yet, cuDNN first makes a
    plan for every convolution: seconds in all.
    """
    same: dict[tuple[int, int], list[tuple[int, Tile]]] = defaultdict(list)
    for item in work:
        same[padded((item[1].height, item[1].width))].append(item)
    batches = []
    for (height, width), items in same.items():
        most = max(1, batch_px // (height * width))
        while items:
            n = min(most, len(items))
            n = 1 << n.bit_length() - 1 if in_few_sizes else n
            batches.append(items[:n])
            items = items[n:]
    return batches
