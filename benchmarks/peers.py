"""`wbc` beside SAHI, a bare torchvision loop and Ray Data on equal fields, weights, scale and lowest score, in turns.

Run by an environment that has `benchmarks/peers-requirements.txt`. Each way is a process of its own that is warmed up
once, and then asked for all fields, round by round; a figure is the median of its rounds. Fields are scaled to the
detector's scale beforehand, alike for all. Ray starts a worker in each round: more `--times` a round tell
that start from what a field costs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.common import Claim, Report, Row, labelled_slide, parser, pixels_of, score, show
from wbc.types import Detections

LOWEST_SCORE, SLICE_PX, SLICE_OVERLAP = 0.7, 512, 0.2
Fields = Sequence[NDArray[np.uint8]]
Look = Callable[[Fields], list[Detections]]
WAYS = ("wbc, openvino", "wbc, torch", "bare loop", "SAHI, same model", "SAHI, torchvision's defaults", "Ray Data")


def _module() -> Any:
    from wbc.models import registry

    return registry.load(registry.resolve("bundled:detector", "detector")[0], "cpu")


def by_wbc(engine: Any) -> Look:
    """`wbc`'s detector by an engine."""
    from wbc.cells.detect import detect
    from wbc.models import registry
    from wbc.models.engines import ready_detector

    model = ready_detector(registry.resolve("bundled:detector", "detector")[0], "cpu", engine)
    return lambda fields: [detect([pixels], model, model.card.um_per_px, LOWEST_SCORE)[0] for pixels in fields]


def by_bare_loop() -> Look:
    """The model, as a training leaves it, on each field as a whole: no tiles, nothing merged."""
    from wbc.cells.detect import run_tiles

    model = _module()
    return lambda fields: [run_tiles([pixels], model, LOWEST_SCORE)[0] for pixels in fields]


def by_sahi(*, defaults: bool) -> Look:
    """SAHI's sliced prediction; with torchvision's proposals, samples a bin, one look and float32, or with ours."""
    from sahi.models.torchvision import TorchVisionDetectionModel
    from sahi.predict import get_sliced_prediction

    loaded = _module()
    module = _as_torchvision(loaded.module) if defaults else loaded.module
    names = {str(i): name for i, name in enumerate(("ground", *loaded.card.classes))}
    model = TorchVisionDetectionModel(
        model=module, confidence_threshold=LOWEST_SCORE, device="cpu", category_mapping=names, load_at_init=True
    )

    def look(pixels: NDArray[np.uint8]) -> Detections:
        found = get_sliced_prediction(
            pixels, model, SLICE_PX, SLICE_PX, SLICE_OVERLAP, SLICE_OVERLAP, verbose=0
        ).object_prediction_list
        boxes = np.array([p.bbox.to_xyxy() for p in found], np.float32).reshape(-1, 4)
        scores, labels = ([f(p) for p in found] for f in (lambda p: p.score.value, lambda p: p.category.id))
        return Detections(boxes, np.array(scores, np.float32), np.array(labels, np.int64))

    return lambda fields: [look(pixels) for pixels in fields]


def _as_torchvision(module: Any) -> Any:
    from wbc.models.bfloat16 import InBfloat16

    for part in module.modules():
        if isinstance(part, InBfloat16):
            part.half_precision = False
    module.rpn.score_thresh, module.rpn.nms_thresh = 0.0, 0.7
    module.rpn._pre_nms_top_n["testing"] = module.rpn._post_nms_top_n["testing"] = 1000
    module.roi_heads.box_roi_pool.sampling_ratio, module.roi_heads.refined_score = 2, 2.0
    return module


class RayLook:
    """The model in a worker of Ray's, as its example of batch inference has it."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.look = by_bare_loop()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Fields by their files -> their boxes, as JSON."""
        found = self.look([np.load(path) for path in batch["path"]])
        cells = [json.dumps([d.boxes.tolist(), d.scores.tolist(), d.labels.tolist()]) for d in found]
        return {"path": batch["path"], "cells": np.array(cells, object)}


def by_ray() -> Look:
    """Ray Data's `map_batches` over fields."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def look(fields: Fields) -> list[Detections]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"{i:03d}.npy") for i in range(len(fields))]
            for path, pixels in zip(paths, fields, strict=True):
                np.save(path, pixels)
            rows = ray.data.from_items([{"path": p} for p in paths]).map_batches(RayLook, concurrency=1, batch_size=4)
            found = {row["path"]: json.loads(row["cells"]) for row in rows.take_all()}
        return [_detections(*found[path]) for path in paths]

    return look


def _detections(boxes: Any, scores: Any, labels: Any) -> Detections:
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels))


LOOKS: dict[str, Callable[[], Look]] = {
    "wbc, openvino": lambda: by_wbc("openvino"),
    "wbc, torch": lambda: by_wbc("torch"),
    "bare loop": by_bare_loop,
    "SAHI, same model": lambda: by_sahi(defaults=False),
    "SAHI, torchvision's defaults": lambda: by_sahi(defaults=True),
    "Ray Data": by_ray,
}


def serve(way: str, fields_file: Path, times: int) -> None:
    """Answer each line with the seconds, CPU-seconds and peak memory of looking at all fields, and what was found.

    All fields are looked at so many `times` in one call; what is told is of one time.
    """
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    with np.load(fields_file) as file:
        fields = [file[name] for name in sorted(file.files)]
    look = LOOKS[way]()
    look(fields)
    for _ in sys.stdin:
        began, spent = time.perf_counter(), _cpu_seconds()
        found = look([*fields] * times)
        wall, cpu = (time.perf_counter() - began) / times, (_cpu_seconds() - spent) / times
        cells = [[d.boxes.tolist(), d.scores.tolist(), d.labels.tolist()] for d in found[: len(fields)]]
        print(json.dumps({"wall": wall, "cpu": cpu, "mb": _memory_mb(), "cells": cells}), file=out, flush=True)


def _tree() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _cpu_seconds() -> float:
    """Of this process, its children, and those of them that have ended."""
    return sum(sum(p.cpu_times()[:4]) for p in _tree())


def _memory_mb() -> float:
    return sum(p.memory_info().rss for p in _tree()) / 1e6


def measure(data: Path, slides: Sequence[str], n_fields: int, ways: Sequence[str], rounds: int, times: int) -> Report:
    """All ways in turns; a table, and the bars."""
    from wbc.cells.detect import rescale

    card, pictures, scaled = _module().card, [], []
    for slide in slides:
        of_slide, um_per_px = labelled_slide(data, slide)
        pictures += [(p, um_per_px / card.um_per_px) for p in of_slide[:n_fields]]
    originals = pixels_of([p for p, _ in pictures])
    scaled = [rescale(pixels, factor) for pixels, (_, factor) in zip(originals, pictures, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fields.npz"
        np.savez(file, **{f"{i:03d}": pixels for i, pixels in enumerate(scaled)})
        answers = _in_turns(file, ways, rounds, times)
    rows: list[Row] = []
    for way in ways:
        cells = [_detections(*of_field) for of_field in answers[way][-1]["cells"]]
        found = [_back(c, small, large) for c, small, large in zip(cells, scaled, originals, strict=True)]
        counts = np.bincount(np.concatenate([d.labels for d in found]), minlength=len(card.classes) + 1)[1:]
        figures = score([p for p, _ in pictures], originals, found, card.classes)
        wall, cpu = (median(a[key] for a in answers[way]) / len(scaled) for key in ("wall", "cpu"))
        rows.append(
            {"way": way, "s a field": round(wall, 3), "CPU s a field": round(cpu, 3)}
            | {"MB": round(max(a["mb"] for a in answers[way])), "AP50": round(figures["AP50"], 3)}
            | {f"n {name}": int(n) for name, n in zip(card.classes, counts, strict=True)}
        )
    return Report("The detector beside others", _claims(answers), {"In turns": rows})


def _back(cells: Detections, scaled: NDArray[np.uint8], original: NDArray[np.uint8]) -> Detections:
    height, width = original.shape[:2]
    return cells.scaled(width / scaled.shape[1], height / scaled.shape[0], height, width)


def _in_turns(file: Path, ways: Sequence[str], rounds: int, times: int) -> dict[str, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "benchmarks.peers", "--fields", str(file), "--times", str(times), "--serve"]
    env = {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "0"} | os.environ
    servers = {
        way: subprocess.Popen([*command, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for way in ways
    }
    answers: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, server in servers.items():
            assert server.stdin is not None
            assert server.stdout is not None
            print("go", file=server.stdin, flush=True)
            answer = server.stdout.readline()
            if not answer:
                raise RuntimeError(f"{way} ended with {server.wait()}")
            answers[way].append(json.loads(answer))
    for server in servers.values():
        server.communicate()
    return answers


def _claims(answers: dict[str, list[dict[str, Any]]]) -> list[Claim]:
    bars = {
        "SAHI, same model": 3.0,
        "SAHI, torchvision's defaults": 10.0,
        "Ray Data": 1.2,
        "bare loop": 1 / 1.05,
    }
    claims = []
    for way, bar in bars.items():
        for ours in ("wbc, torch", "wbc, openvino"):
            if way in answers and ours in answers:
                ratio = median(a["cpu"] / b["cpu"] for a, b in zip(answers[way], answers[ours], strict=True))
                claims.append(Claim(f"CPU-seconds: {way} in ratio to {ours}", ratio, at_least=bar))
    return claims


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, help="folder of labelled slides")
    command.add_argument("--slides", nargs="+", default=["slide-04", "slide-07"])
    command.add_argument("--n-fields", type=int, default=2, help="of each slide")
    command.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--times", type=int, default=1, help="that each field is looked at in a round")
    command.add_argument("--serve", help=argparse.SUPPRESS)
    command.add_argument("--fields", type=Path, help=argparse.SUPPRESS)
    chosen = command.parse_args()
    if chosen.serve:
        serve(chosen.serve, chosen.fields, chosen.times)
        return
    report = measure(chosen.data, chosen.slides, chosen.n_fields, chosen.ways, chosen.rounds, chosen.times)
    show(report, as_json=chosen.json)


if __name__ == "__main__":
    main()
