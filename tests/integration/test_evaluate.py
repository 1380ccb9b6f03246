"""`wbc evaluate`, as a user runs it; and its COCO figures, which are pycocotools' own."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fixture_types import Wbc
from painted import make_slide
from upath import UPath

from wbc.datasets.coco import coco_truth, write_coco
from wbc.datasets.labels import LabelledPicture
from wbc.datasets.voc import read_voc
from wbc.evaluation.boxes import FoundSet, score_boxes
from wbc.types import Detections

NAMES = {"RBC": "rbc", "WBC": "wbc", "Platelets": "platelet"}


@pytest.mark.real
def test_figures_are_pycocotools_own_on_bccd_test(real_data: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    stems = (real_data / "bccd" / "splits" / "test.txt").read_text().split()
    pictures = read_voc(real_data / "bccd" / "images", real_data / "bccd" / "voc", NAMES, stems)
    rng, classes = np.random.default_rng(1), ("rbc", "platelet", "wbc")
    found = []
    for picture in pictures:  # most cells, moved, some called otherwise, and others where none is
        n = len(picture.labels)
        false = rng.uniform(0, 400, (5, 2))
        boxes = np.vstack([picture.boxes + rng.normal(0, 4, (n, 4)), np.hstack([false, false + 60])])
        labels = [classes.index(label) + 1 for label in picture.labels] + [int(rng.integers(1, 4))] * 5
        kept = rng.random(n + 5) < 0.9
        scores = rng.uniform(0.05, 1, n + 5).astype(np.float32)
        found.append(Detections(boxes[kept].astype(np.float32), scores[kept], np.array(labels, np.int64)[kept]))
    truth = tuple((picture, 640, 480) for picture in pictures)
    figures, _ = score_boxes(FoundSet("bccd", classes, truth, tuple(found)))

    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = coco_truth([(str(i), 640, 480, p) for i, p in enumerate(pictures)], list(classes))
        reference.createIndex()
        rows = [
            {"image_id": i, "category_id": int(c), "bbox": [x0, y0, x1 - x0, y1 - y0], "score": float(s)}
            for i, d in enumerate(found, 1)
            for (x0, y0, x1, y1), s, c in zip(d.boxes.tolist(), d.scores, d.labels, strict=True)
        ]
        own = COCOeval(reference, reference.loadRes(rows), "bbox")
        own.evaluate()
        own.accumulate()
        own.summarize()  # no picture has more than 100 boxes
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100")
    np.testing.assert_allclose([figures[name] for name in names], own.stats[:9], atol=1e-6)
    assert figures["AR_1000"] == pytest.approx(own.stats[8], abs=1e-6)
    assert 0.2 < figures["AP50"] < 1


def test_a_detector_is_measured_on_a_coco_folder(wbc: Wbc, tmp_path: Path, dark_folder: Path) -> None:
    slide = make_slide(UPath(tmp_path / "s1"), 3)
    fields = sorted(Path(str(slide)).iterdir())
    pictures = [LabelledPicture(path, np.array([[10, 10, 40, 40]], np.float32), ("rbc",)) for path in fields]
    write_coco(tmp_path / "s1" / "truth.json", pictures, tmp_path / "s1")
    out = tmp_path / "out"
    told = wbc("evaluate", dark_folder, tmp_path / "s1" / "truth.json", "--out", out, "--device", "cpu", "--json")
    assert told.exit_code == 0, told.output
    values = json.loads((out / "figures.json").read_text())
    assert set(values["figures"]) == {"truth"}
    assert {"AP", "AR_1000", "sensitivity", "ECE of scores"} <= set(values["figures"]["truth"])
    kinds = pd.read_parquet(out / "kinds.parquet")
    assert kinds["kind"].tolist() == ["rbc"]
    assert kinds["cells"].tolist() == [3]
    assert (out / "confusion-truth.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "reliability-truth.png").read_bytes().startswith(b"\x89PNG")
    refused = wbc("evaluate", dark_folder, tmp_path, "--out", out)
    assert (refused.exit_code, str(tmp_path) in refused.output) == (2, True)
