"""From a file to the device: copies from pageable and pinned memory, scaling there or here, and decoding by nvJPEG."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg
import torch
from torch import Tensor, nn

import wbc.cells.detect as looking
from benchmarks.common import labelled_slide
from benchmarks.gpu_fields import UM_PER_PX
from benchmarks.gpu_subject import Pixels, Subject
from benchmarks.gpu_variants import largest_difference
from wbc.storage.images import decode_field

THREADS = (1, 4, 8, 16)
DECODED_TOGETHER = 8


def copies(subject: Subject) -> Iterator[dict[str, object]]:
    """Milliseconds a field of ways to bring it to the device at the detector's scale, as float32."""
    pixels = subject.fields["large"][0]
    factor = UM_PER_PX / subject.detector.card.um_per_px
    scaled = looking.rescale(pixels, factor)
    ways: dict[str, Callable[[], object]] = {
        "scale here": lambda: looking.rescale(pixels, factor),
        "tiles as shipped": lambda: _tiles(scaled, subject),
        "the scaled field, rows as they lie": lambda: torch.from_numpy(scaled).to(subject.device),
        "the whole field, rows as they lie": lambda: torch.from_numpy(pixels).to(subject.device),
    }
    on_device = torch.from_numpy(pixels.copy()).to(subject.device)
    ways["scale there"] = lambda: scaled_there(on_device, scaled.shape)
    if subject.is_gpu:
        pinned = torch.from_numpy(pixels.copy()).pin_memory()
        own = torch.empty_like(pinned).pin_memory()
        ways["the whole field, pinned"] = lambda: pinned.to(subject.device, non_blocking=True)
        ways["into pinned memory, on the CPU"] = lambda: own.copy_(torch.from_numpy(pixels))
        ways["pinned, scaled there"] = lambda: scaled_there(pinned.to(subject.device, non_blocking=True), scaled.shape)
    for name, work in subject.in_time(ways.items()):
        yield {"way": name, "ms a field": 1e3 * subject.seconds(work, 0.1)}
    there = scaled_there(on_device, scaled.shape).round().clamp(0, 255).byte()
    mean, largest = largest_difference(there.permute(1, 2, 0).cpu().numpy(), scaled)
    yield {"scaled there against here": "levels of 255", "mean": mean, "largest": largest}


def _tiles(scaled: Pixels, subject: Subject) -> list[Tensor]:
    from wbc.cells.tiles import TileSettings

    grid = looking.grid(scaled.shape, subject.detector, TileSettings())
    return [looking._to_tensor(looking._cut(scaled, tile), subject.device) for tile in grid]


@torch.inference_mode()
def scaled_there(pixels: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Pixels uint8 (H,W,3) on the device -> float32 (3,h,w) in 0..255, of `shape` (h,w,3)."""
    planes = pixels.permute(2, 0, 1)[None].float()
    return nn.functional.interpolate(planes, shape[:2], mode="bilinear", antialias=True)[0]


def decoding(subject: Subject) -> Iterator[dict[str, object]]:
    """JPEGs by simplejpeg on threads and by nvJPEG, and how far their pixels are apart."""
    files = [
        subject.jpegs["large"][i % len(subject.jpegs["large"])]
        for i in range(4 * DECODED_TOGETHER if subject.is_gpu else 2)
    ]
    for threads in subject.in_time(THREADS if subject.is_gpu else (1,)):
        with ThreadPoolExecutor(threads) as pool:
            for name, decode in (("simplejpeg", _plain), ("decode_field", _checked)):
                list(pool.map(decode, files[:threads]))
                began = time.perf_counter()
                list(pool.map(decode, files))
                yield {
                    "decoder": name,
                    "threads": threads,
                    "ms a field": 1e3 * (time.perf_counter() - began) / len(files),
                }
    if subject.is_gpu:
        yield from _by_nvjpeg(subject, files)


def _plain(content: bytes) -> Pixels:
    return np.asarray(simplejpeg.decode_jpeg(content))


def _checked(content: bytes) -> Pixels:
    return decode_field("field", content)


def _by_nvjpeg(subject: Subject, files: list[bytes]) -> Iterator[dict[str, object]]:
    from torchvision.io import ImageReadMode, decode_jpeg

    buffers = [torch.frombuffer(bytearray(f), dtype=torch.uint8) for f in files]
    for n in (1, DECODED_TOGETHER, len(buffers)):
        some = buffers[:n]
        seconds = subject.seconds(lambda some=some: decode_jpeg(some, ImageReadMode.RGB, device="cuda"), 0.2, 10)  # type: ignore[misc]
        yield {"decoder": f"nvJPEG, {n} together", "threads": 1, "ms a field": 1e3 * seconds / n}
    real = [p.path.read_bytes() for s in ("slide-04", "slide-07") for p in labelled_slide(subject.data, s)[0][:1]]
    for name, content in zip(("rendered", "slide-04", "slide-07"), [files[0], *real], strict=True):
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        there = decode_jpeg(buffer, ImageReadMode.RGB, device="cuda").permute(1, 2, 0).cpu().numpy()
        mean, largest = largest_difference(there, _plain(content))
        sampling = simplejpeg.decode_jpeg_header(content)[3]
        yield {"nvJPEG against libjpeg": name, "sampling": sampling, "mean": mean, "largest": largest}
