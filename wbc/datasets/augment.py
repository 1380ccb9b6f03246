"""What differs between laboratories, drawn at random: stain, light, focus, noise, compression, orientation, shear."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Pixels = NDArray[np.uint8]
GREY = np.full((3, 3), 1 / 3)
DIMMEST = 0.6  # what the dimmest lamp leaves of white
LEAST_VARIANCE = 1e-4  # of an optical density: a grain of two grey levels


@dataclass(frozen=True, slots=True)
class Jitter:
    """How far each property may go; a probability `plain` leaves a picture's colours as they are.

    `hue_degrees` turns optical densities about the grey axis; `density` and `saturation` are factors' log ranges;
    `ground` is the darkest background channel as a fraction of white. A probability `grey` takes all colour away.
    `coarse` is the lowest resolution of another camera, as a fraction of this one's; without `optics` camera, focus,
    noise and compression stay as they are.
    """

    plain: float = 0.2
    hue_degrees: float = 30.0
    density: float = 0.4
    saturation: float = 0.5
    mix: float = 0.06
    ground: float = 0.5
    gamma: float = 0.3
    blur_px: float = 1.2
    noise: float = 6.0
    shear: float = 0.15
    grey: float = 0.0
    coarse: float = 1.0
    optics: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.ground <= DIMMEST:
            raise ValueError(f"ground is {self.ground}: it is above 0, and at most {DIMMEST}, the dimmest lamp's white")


def take_stain(pixels: Pixels, other: Pixels, share: float) -> Pixels:
    """The cells of one picture uint8 (H,W,3) under the stain of another, wholly with a `share` of 1, not with 0.

    Optical densities above the background get the other's mean and covariance by the linear map that moves them least
    (Monge and Kantorovich's; Pitié and Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping").
    """
    density, others = _above_ground(pixels), _above_ground(other)[::4, ::4].reshape(-1, 3)
    own = density[::4, ::4].reshape(-1, 3)
    grain = LEAST_VARIANCE * np.eye(3)  # else what hardly varies here is blown up to what varies there
    root = _root(np.cov(own.T) + grain)
    inverse = np.linalg.inv(root)
    exact = inverse @ _root(root @ (np.cov(others.T) + grain) @ root) @ inverse
    moved = density @ (share * exact + (1 - share) * np.eye(3)).T.astype(np.float32)
    moved -= _ground(moved)
    light: Pixels = np.clip(np.exp(-(moved + _ground(_density(pixels)))) * 256 - 1, 0, 255).astype(np.uint8)
    return light


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric root of a covariance (3,3)."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T)


def _density(pixels: Pixels) -> NDArray[np.float32]:
    return np.asarray(-np.log((pixels.astype(np.float32) + 1) / 256))


def _ground(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """The optical density of the background (3,): few pixels are brighter."""
    return np.percentile(density[::4, ::4].reshape(-1, 3), 12, axis=0).astype(np.float32)


def _above_ground(pixels: Pixels) -> NDArray[np.float32]:
    density = _density(pixels)
    return density - _ground(density)


def jitter_stain(pixels: Pixels, jitter: Jitter, rng: np.random.Generator) -> Pixels:
    """The same smear uint8 (H,W,3) under another stain, lamp and camera, by optical density (Beer-Lambert).

    Densities above the background are turned in hue, scaled and mixed between channels (stain); the background
    becomes another light colour (lamp, white balance); last a gamma (camera).
    """
    if rng.random() < jitter.plain:
        return pixels
    density = _above_ground(pixels)
    stain = hue_matrix(np.deg2rad(rng.uniform(-jitter.hue_degrees, jitter.hue_degrees)))
    saturation = np.exp(rng.uniform(-jitter.saturation, jitter.saturation))
    if jitter.grey and rng.random() < jitter.grey:
        saturation = 0.0
    stain = stain @ (saturation * np.eye(3) + (1 - saturation) * GREY) + rng.normal(0, jitter.mix, (3, 3))
    stain *= np.exp(rng.uniform(-jitter.density, jitter.density))
    bright = rng.uniform(DIMMEST, 1.0)
    lamp = -np.log(np.clip(bright * rng.uniform(jitter.ground / bright, 1.0, 3) ** rng.uniform(0, 1), 0.3, 1.0))
    new_density = density @ stain.T.astype(np.float32) + lamp
    light = np.exp(-np.clip(new_density, 0, None)) ** np.exp(rng.uniform(-jitter.gamma, jitter.gamma))
    result: Pixels = np.clip(light * 255, 0, 255).astype(np.uint8)
    return result


def hue_matrix(angle: float) -> NDArray[np.float64]:
    """Rotation (3,3) of RGB about the grey axis by `angle` radians (Rodrigues)."""
    k = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k)


def jitter_optics(pixels: Pixels, jitter: Jitter, rng: np.random.Generator) -> Pixels:
    """The same picture uint8 (H,W,3) with other focus, light fall-off, noise and JPEG quality, each now and then."""
    if not jitter.optics:
        return pixels
    picture = Image.fromarray(pixels)
    if jitter.coarse < 1 and rng.random() < 0.2:
        share, (w, h) = rng.uniform(jitter.coarse, 1), picture.size
        small = picture.resize((round(w * share), round(h * share)), Image.Resampling.BOX)
        picture = small.resize((w, h), Image.Resampling.BILINEAR)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, jitter.blur_px)))
    elif rng.random() < 0.2:
        picture = picture.filter(ImageFilter.UnsharpMask(1.5, int(rng.uniform(50, 150)), 2))
    out = np.asarray(picture)
    if rng.random() < 0.4:
        h, w = out.shape[:2]
        angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.3)
        y, x = np.mgrid[-0.5 : 0.5 : h * 1j, -0.5 : 0.5 : w * 1j]
        light = 1 - depth * (0.5 + x * np.cos(angle) + y * np.sin(angle))
        out = np.clip(out * light[..., None], 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        noise = rng.standard_normal(out.shape, np.float32) * np.float32(rng.uniform(1, jitter.noise))
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        packed = io.BytesIO()
        Image.fromarray(out).save(packed, "JPEG", quality=int(rng.uniform(30, 90)))
        out = np.asarray(Image.open(packed))
    return out


def add_debris(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Now and then what lies on slides and is no cell, on the picture uint8 (H,W,3).

    Pointers, scale bars, threads and heaps of precipitate, black or in the colour of a stain, or a pale stained cloud.
    """
    if rng.random() > 0.35:
        return pixels
    picture = Image.fromarray(pixels)
    w, h = picture.size
    mask = Image.new("L", (w, h), 0)
    pen = ImageDraw.Draw(mask)
    cloud = rng.random() < 0.3
    for _ in range(int(rng.integers(1, 4))):
        x, y, angle = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0, 2 * np.pi)
        length, width = rng.uniform(20, 200), rng.uniform(1, 14)
        dx, dy = np.cos(angle) * length, np.sin(angle) * length
        nx, ny = -np.sin(angle) * width, np.cos(angle) * width
        kind = rng.random()
        if cloud or kind < 0.3:
            spread, grain = rng.uniform(4, 25), rng.uniform(3, 9) if cloud else rng.uniform(0.5, 3)
            for px, py in rng.normal((x, y), spread, (int(rng.integers(5, 60)), 2)):
                pen.ellipse([(px - grain, py - grain), (px + grain, py + grain)], fill=int(rng.integers(80, 256)))
        elif kind < 0.65:  # a pointer narrows to its tip
            pen.polygon([(x - nx, y - ny), (x + nx, y + ny), (x + dx, y + dy)], fill=255)
        else:
            pen.line([(x, y), (x + dx, y + dy)], fill=255, width=max(1, int(width / 2)))
    if cloud or rng.random() < 0.5:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(2, 6) if cloud else rng.uniform(0.5, 4)))
    opacity = rng.uniform(0.1, 0.4) if cloud else rng.uniform(0.5, 1)
    if cloud or rng.random() < 0.4:
        colour = rng.uniform((50, 30, 110), (140, 110, 190))
    else:
        colour = rng.uniform(0, 90, 3) if rng.random() < 0.8 else rng.uniform(0, 255, 3)
    ink = Image.new("RGB", (w, h), (int(colour[0]), int(colour[1]), int(colour[2])))
    return np.asarray(Image.composite(ink, picture, mask.point(lambda level: int(level * opacity))))


def turn(pixels: Pixels, boxes: NDArray[np.float32], rng: np.random.Generator) -> tuple[Pixels, NDArray[np.float32]]:
    """Picture and boxes (N,4) flipped and turned by quarter turns at random: cells have no orientation (Wang 2021)."""
    for _ in range(int(rng.integers(4))):
        height = pixels.shape[0]
        pixels = np.rot90(pixels, -1)  # clockwise: (x, y) -> (height - y, x)
        x0, y0, x1, y1 = boxes.T
        boxes = np.stack([height - y1, x0, height - y0, x1], 1)
    if rng.random() < 0.5:
        width = pixels.shape[1]
        pixels = pixels[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return np.ascontiguousarray(pixels), boxes


def shear(pixels: Pixels, boxes: NDArray[np.float32], slope: float) -> tuple[Pixels, NDArray[np.float32]]:
    """Picture sheared along x by `slope` px a row, about its middle, and cut to what stays covered.

    A cell is taken for the ellipse in its box, whose half width a becomes sqrt(a² + (slope·b)²): the box stays tight.
    """
    h, w = pixels.shape[:2]
    margin = int(np.ceil(abs(slope) * h / 2))
    if w - 2 * margin < w // 2:
        return pixels, boxes
    picture = Image.fromarray(pixels).transform(
        (w, h), Image.Transform.AFFINE, (1, -slope, slope * h / 2, 0, 1, 0), Image.Resampling.BILINEAR
    )
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    a, b = (boxes[:, 2] - boxes[:, 0]) / 2, (boxes[:, 3] - boxes[:, 1]) / 2
    x, a = x + slope * (y - h / 2) - margin, np.sqrt(a**2 + (slope * b) ** 2)
    bounds = np.stack([x - a, y - b, x + a, y + b], 1).astype(np.float32)
    return np.asarray(picture)[:, margin : w - margin], bounds
