"""Rendered fields for `benchmarks.gpu`, made in other processes while this one loads its models; without torch."""

from concurrent.futures import Executor, Future
from dataclasses import dataclass

UM_PER_PX = 0.105
LARGE, SMALL = (1920, 2560), (480, 640)


@dataclass(frozen=True, slots=True)
class Rendering:
    """Fields on their way, as JPEGs: large and small ones."""

    large: "list[Future[bytes]]"
    small: "list[Future[bytes]]"


def render(pool: Executor, n_large: int, n_small: int) -> Rendering:
    """Have so many fields rendered."""
    jobs = [[pool.submit(_field, size, i) for i in range(n)] for size, n in ((LARGE, n_large), (SMALL, n_small))]
    return Rendering(*jobs)


def _field(size: tuple[int, int], seed: int) -> bytes:
    from io import BytesIO

    import numpy as np
    from PIL import Image

    from wbc.synth.smear import JPEG_QUALITY, SmearSettings, render_field

    settings = SmearSettings(*size, um_per_px=UM_PER_PX)
    pixels, _, _ = render_field(settings, np.random.default_rng([*size, seed]))
    jpeg = BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return jpeg.getvalue()
