"""How a field is cut into tiles for the detector: settings alone, to be had without torch."""

from dataclasses import dataclass

from wbc.sought import Sought

# The most pixels of a forward pass: a processor keeps its caches, a GPU waits less for its next kernel.
BATCH_PX, GPU_BATCH_PX = 1_100_000, 13_200_000


@dataclass(frozen=True, slots=True)
class TileSettings:
    """How a field is looked at. `tile_px` (the largest side) and `margin_px` are pixels of the detector's scale.

    A cell of up to `overlap_um` is whole in some tile; a lymphocyte or monocyte has 10 µm of its surroundings beside.
    Tiles begin at multiples of `step_px`, the coarsest stride of a pyramid: a cell lies on the same places of the maps
    whichever tile sees it. `tile_px` may be passed by less than a step. `origin` (y, x) shifts the grid, in the
    detector's pixels. Where white cells alone are `sought`, a first look
    says which places are looked at.
    """

    tile_px: int = 1024
    overlap_um: float = 36.0
    margin_px: float = 4.0
    step_px: int = 32
    origin: tuple[int, int] = (0, 0)
    sought: Sought = "all"
