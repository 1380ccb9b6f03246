"""The recipe for classifiers: single cells, coarse labels through the taxonomy's tree, ImageNet features."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from wbc.datasets.augment import Jitter, jitter_optics, jitter_stain
from wbc.datasets.crops import PATCH_PX, PATCH_UM, Crops


@dataclass(frozen=True, slots=True)
class CropSettings:
    """A classifier's window: `input_px` a side at `um_per_px`; training moves, turns, shears and scales it this far."""

    input_px: int = 128
    um_per_px: float = 0.16
    smallest_scale: float = 0.8
    largest_scale: float = 1.25
    shift_um: float = 1.2
    shear: float = 0.12


class CropSamples(Dataset[tuple[Tensor, int]]):
    """Endless crops: the i-th depends on seed and i alone. Pixels uint8 (3,S,S), and the index of its label's row.

    `parts` are (crops, row of each label, weight): a part is drawn by its weight, a label within it by the root of its
    number of cells, so that three basophils are neither lost nor learnt by heart.
    """

    def __init__(
        self, parts: list[tuple[Crops, dict[str, int], float]], crop: CropSettings, jitter: Jitter, seed: int
    ) -> None:
        self.crop, self.jitter, self.seed = crop, jitter, seed
        self.parts = [p for p, _, _ in parts]
        self.rows = [[rows[label] for label in p.labels] for p, rows, _ in parts]
        self.of_label = [
            [[i for i, row in enumerate(rows) if row == wanted] for wanted in sorted(set(rows))] for rows in self.rows
        ]
        self.chance = [_fractions([np.sqrt(len(group)) for group in groups]) for groups in self.of_label]
        self.weights = _fractions([weight for _, _, weight in parts])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Sample `index`."""
        rng = np.random.default_rng([self.seed, index])
        part = int(rng.choice(len(self.parts), p=self.weights))
        among = self.of_label[part][int(rng.choice(len(self.chance[part]), p=self.chance[part]))]
        i = among[int(rng.integers(len(among)))]
        pixels = random_window(self.parts[part].pixels[i], self.crop, rng)
        pixels = jitter_optics(jitter_stain(pixels, self.jitter, rng), self.jitter, rng)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), self.rows[part][i]


def _fractions(weights: list[float]) -> NDArray[np.float64]:
    fractions: NDArray[np.float64] = np.array(weights) / np.sum(weights)
    return fractions


def random_window(patch: NDArray[np.uint8], crop: CropSettings, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A window uint8 (S,S,3) of a patch (176,176,3), turned by any angle, mirrored, sheared, scaled and shifted."""
    per_px = crop.um_per_px * PATCH_PX / PATCH_UM
    per_px /= np.exp(rng.uniform(np.log(crop.smallest_scale), np.log(crop.largest_scale)))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    lean = np.array([[rng.choice([-1.0, 1.0]), rng.uniform(-crop.shear, crop.shear)], [0.0, 1.0]])
    matrix = per_px * turn @ lean
    centre = PATCH_PX / 2 + rng.uniform(-1, 1, 2) * crop.shift_um * PATCH_PX / PATCH_UM
    offset = centre - matrix @ np.full(2, crop.input_px / 2)
    return affine(patch, matrix, offset, crop.input_px)


def affine(
    patch: NDArray[np.uint8], matrix: NDArray[np.float64], offset: NDArray[np.float64], out_px: int
) -> NDArray[np.uint8]:
    """The patch seen through out (x, y) -> matrix (x, y) + offset: uint8 (out_px, out_px, 3), mirrored at its edge."""
    edge = PATCH_PX // 4
    wide = np.pad(patch, ((edge, edge), (edge, edge), (0, 0)), mode="reflect")
    (a, b), (d, e) = matrix
    c, f = offset + edge
    seen = Image.fromarray(wide).transform(
        (out_px, out_px), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return np.asarray(seen)


def central_windows(crops: Crops, crop: CropSettings) -> Tensor:
    """Every crop's window as a count sees it, unturned: uint8 (N,3,S,S)."""
    per_px = crop.um_per_px * PATCH_PX / PATCH_UM
    offset = np.full(2, PATCH_PX / 2 - per_px * crop.input_px / 2)
    windows = [affine(p, per_px * np.eye(2), offset, crop.input_px) for p in crops.pixels]
    return torch.from_numpy(np.stack(windows).transpose(0, 3, 1, 2).copy())


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 (B,3,S,S) -> float32, (x/255 - mean)/std, channels last."""
    m, s = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (mean, std))
    return ((pixels.float() / 255 - m) / s).contiguous(memory_format=torch.channels_last)


def tree_losses(
    matrix: NDArray[np.float32], mean: tuple[float, ...], std: tuple[float, ...], smoothing: float = 0.05
) -> Callable[[nn.Module, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A `losses` function for `loop.fit`: cross-entropy of labels that may be coarse.

    Row r of `matrix` (R,C) marks the classes that label r covers; its probability is the sum of theirs.
    """
    covers = torch.from_numpy(matrix)

    def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        if not model.training:
            model.train()
        device = next(model.parameters()).device
        pixels, rows = batch
        log_p = model(normalise(pixels.to(device), mean, std)).float().log_softmax(1)
        covered = covers.to(device)[rows.to(device)]
        hit = torch.logsumexp(log_p.masked_fill(covered == 0, -torch.inf), 1)
        return {"loss_kind": -((1 - smoothing) * hit + smoothing * log_p.mean(1)).mean()}

    return losses


@torch.inference_mode()
def predict(model: nn.Module, pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """Class probabilities float32 (N,C) of windows uint8 (N,3,S,S)."""
    device = next(model.parameters()).device
    batches = (pixels[i : i + 64] for i in range(0, len(pixels), 64))
    parts = [model(normalise(p.to(device), mean, std)).softmax(1).cpu() for p in batches]
    return np.asarray(torch.cat(parts).numpy(), np.float32)
