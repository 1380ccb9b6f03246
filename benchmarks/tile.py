"""One tile through the detector: an earlier revision of this repository as it shipped, beside this tree by each engine.

Each gets the same piece of a field, at the scale of its own detector.

Every way is a process of its own with one thread, its model loaded and warm; they take turns. CPU-seconds a call, the
least and the median: on a busy machine the least is nearer to what an idle one needs.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.common import Claim, Report, Row, labelled_slide, parser, pixels_of, show
from wbc.cells.detect import grid, rescale
from wbc.cells.tiles import TileSettings
from wbc.models import registry

TREE = Path(__file__).parents[1]
BARS = {"torch": 2.5, "openvino": 3.5}
CALLS = """
import sys, time, numpy, torch
try:
    from wbc.models import registry
except ImportError:  # as it was called first
    from wbc import registry
torch.set_num_threads(1)
ref, engine = registry.resolve("bundled:detector", "detector")[0], sys.argv[1]
if engine == "before":
    module = registry.load(ref, "cpu").module
else:
    from wbc.models.engines import ready_detector
    module = ready_detector(ref, "cpu", engine).module
tile = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.inference_mode():
    module([tile]), module([tile])
    for _ in sys.stdin:
        began = time.process_time()
        module([tile])
        print(time.process_time() - began, flush=True)
"""


def measure(tiles: Mapping[str, Path], trees: Mapping[str, Path], rounds: int) -> Report:
    """CPU-seconds of each way, which runs in its own tree, on its tile float32 (3,H,W) saved as NPY."""
    running = {way: _start(way, tree, tiles[way]) for way, tree in trees.items()}
    spent: dict[str, list[float]] = {way: [] for way in trees}
    try:
        for _ in range(rounds):
            for way, process in running.items():
                spent[way].append(_call(process))
    finally:
        for process in running.values():
            process.communicate()
    rows: list[Row] = [{"way": way, "least": min(s), "median": median(s)} for way, s in spent.items()]
    claims = [c for way in trees if way in BARS for c in _claims(way, spent["before"], spent[way])]
    return Report("A tile through the detector", claims, {"CPU-seconds a call": rows})


def _claims(way: str, before: Sequence[float], now: Sequence[float]) -> list[Claim]:
    figures = {"least": min(before) / min(now), "median": median(before) / median(now)}
    return [Claim(f"before, in ratio to {way}: {of}", ratio, at_least=BARS[way]) for of, ratio in figures.items()]


def _start(way: str, tree: Path, tile: Path) -> "subprocess.Popen[str]":
    places = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CALLS, way, str(tile)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, cwd=tree, env=environment, text=True, **streams)  # type: ignore[call-overload]


def _call(process: "subprocess.Popen[str]") -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def save_tiles(data: Path, slide: str, trees: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """What this tree's first tile of a slide's first field shows, at the scale of each tree's own detector.

    float32 (3,H,W) in 0..1, as NPY.
    """
    model = registry.load(registry.resolve("bundled:detector", "detector")[0], "cpu")
    pictures, um_per_px = labelled_slide(data, slide)
    field = pixels_of(pictures[:1])[0]
    factor = um_per_px / model.card.um_per_px
    place = grid(rescale(field, factor).shape, model, TileSettings())[0]
    y, x, height, width = (round(v / factor) for v in (place.y, place.x, place.height, place.width))
    shown, tiles = field[y : y + height, x : x + width], {}
    for way, tree in trees.items():
        (card,) = tree.glob("wbc/models/weights/detector/card.json")
        pixels = rescale(shown, um_per_px / json.loads(card.read_text())["um_per_px"])
        tiles[way] = folder / f"{way}.npy"
        np.save(tiles[way], pixels.transpose(2, 0, 1).astype(np.float32) / 255)
    return tiles


def unpack(revision: str, folder: Path) -> Path:
    """The package of an earlier revision, below `folder`."""
    archive = subprocess.run(["git", "-C", str(TREE), "archive", revision, "wbc"], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="folder of labelled slides")
    command.add_argument("--slide", default="slide-04")
    command.add_argument("--before", default="de24d51", help="a revision of this repository")
    command.add_argument("--engines", nargs="+", default=["torch", "openvino"])
    command.add_argument("--rounds", type=int, default=24)
    chosen = command.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trees = {"before": unpack(chosen.before, folder / "before")} | dict.fromkeys(chosen.engines, TREE)
        tiles = save_tiles(chosen.data, chosen.slide, trees, folder)
        show(measure(tiles, trees, chosen.rounds), as_json=chosen.json)


if __name__ == "__main__":
    main()
