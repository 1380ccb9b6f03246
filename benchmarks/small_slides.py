"""Small slides to be attacked: pieces of real fields, or rendered ones, each in some format."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from upath import UPath

from benchmarks.damages import Rng
from wbc.storage.images import read_field
from wbc.storage.slides import discover
from wbc.synth.smear import SmearSettings, render_field

HEIGHT, WIDTH, UM_PER_PX = 480, 640, 0.2
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": (".jpg", {"format": "JPEG", "quality": 92}),
    "progressive jpeg": (".jpg", {"format": "JPEG", "quality": 92, "progressive": True}),
    "grey jpeg": (".jpg", {"format": "JPEG", "quality": 92}),
    "png": (".png", {"format": "PNG", "compress_level": 1}),
    "bmp": (".bmp", {"format": "BMP"}),
    "tiff": (".tif", {"format": "TIFF"}),
    "lzw tiff": (".tif", {"format": "TIFF", "compression": "tiff_lzw"}),
    "deflate tiff": (".tif", {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
    "jpeg tiff": (".tif", {"format": "TIFF", "compression": "jpeg", "quality": 92}),
}


def base_fields(data: Path | None, n: int, seed: int) -> list[NDArray[np.uint8]]:
    """`n` fields of 640×480 px, no two alike: pieces of the real fields in `data`, else rendered ones."""
    rng = np.random.default_rng(seed)
    if data is None:
        settings = SmearSettings(height_px=HEIGHT, width_px=WIDTH, um_per_px=UM_PER_PX)
        return [render_field(settings, rng)[0] for _ in range(n)]
    paths = [path for slide in discover(UPath(data)) for path in slide.field_paths]
    pieces = []
    for i in rng.permutation(len(paths))[:n]:
        pixels = read_field(paths[i])
        y, x = (int(rng.integers(0, max(1, size + 1))) for size in (pixels.shape[0] - HEIGHT, pixels.shape[1] - WIDTH))
        pieces.append(np.ascontiguousarray(pixels[y : y + HEIGHT, x : x + WIDTH]))
    return pieces


def write_slide(folder: Path, fields: list[NDArray[np.uint8]], rng: Rng, n: int = 2) -> tuple[Path, str]:
    """A slide of `n` of these fields, each in some format; the file and the format of the first."""
    folder.mkdir(parents=True)
    written = []
    for i, pixels in enumerate(rng.permutation(len(fields))[:n]):
        name = str(rng.choice(list(FORMATS)))
        suffix, options = FORMATS[name]
        picture = Image.fromarray(fields[pixels])
        sink = BytesIO()
        (picture.convert("L") if name.startswith("grey") else picture).save(sink, **options)
        path = folder / f"field-{i}{suffix}"
        path.write_bytes(sink.getvalue())
        written.append((path, name))
    return written[0]
