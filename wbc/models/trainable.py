"""What the training of detectors asks of a module, whatever its architecture."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class TrainableDetector(Protocol):
    """A module that, in train mode, is called as torchvision's detectors are.

    It takes tiles, a list of float32 (3,H,W) in 0..1, and as many targets, `boxes` (N,4) in tile pixels and `labels`
    (N,) from 1 on, and returns its losses by name. In eval mode it takes tiles alone and returns their boxes, labels
    and scores.
    """

    @property
    def body(self) -> nn.Module:
        """The feature extractor under timm's names: it starts from ImageNet weights, and parts of it may be frozen."""

    @property
    def class_bias(self) -> Tensor:
        """The bias of each class's logit (C,), without the background's; what is added to it moves the scores."""

    def __call__(self, tiles: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Losses by name in train mode, a dict of boxes, labels and scores for each tile in eval mode."""
