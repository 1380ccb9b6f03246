"""How well the classifier names single cells: `pbc_cells` (test), and `tecom_wbc`, a stain it has never seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from upath import UPath

from benchmarks.common import Claim, Report, Row, parser, show
from wbc.datasets.crops import Crops, patch
from wbc.models import registry
from wbc.storage.images import read_field
from wbc.training.classifier_data import CropTable, read_crops
from wbc.training.measure import classifier_confusion
from wbc.training.metrics import kind_accuracy

BAR_ACCURACY = 0.91
PBC_CELLS = CropTable("pbc_cells.parquet", ("test",), 0.1018, leave_out=("platelet",))
# tecom_wbc does not tell its scale. Its lymphocytes are 55 px across and its eosinophils 82, those of pbc_cells 102 and
# 140 px of 0.1018 µm: 0.19 and 0.17 µm per px.
TECOM_UM_PER_PX = 0.18
COARSE = {"band_neutrophil": "neutrophil", "segmented_neutrophil": "neutrophil"}
OTHER = "other"


def measure(data: Path, classifier: str, device: str, tecom_um_per_px: float) -> Report:
    """Accuracy, macro recall and confusion of both sets; the second only where `data` has it."""
    _, card = registry.resolve(classifier, "classifier")
    matrix = classifier_confusion(read_crops(PBC_CELLS, data), classifier, device)
    figures = kind_accuracy(matrix)
    claims = [
        Claim("pbc_cells test, accuracy", figures["accuracy"], at_least=BAR_ACCURACY),
        Claim("pbc_cells test, macro recall", figures["macro_recall"]),
    ]
    tables = {"pbc_cells test (row: true, column: named)": _rows(matrix, card.classes)}
    remarks = []
    if (data / "tecom_wbc").is_dir():
        kinds, coarse = _tecom(data / "tecom_wbc", classifier, device, tecom_um_per_px)
        figures = kind_accuracy(coarse)
        claims += [
            Claim("tecom_wbc, accuracy", figures["accuracy"]),
            Claim("tecom_wbc, macro recall", figures["macro_recall"]),
        ]
        tables["tecom_wbc (row: true, column: named)"] = _rows(coarse, kinds)
        remarks.append(
            f"tecom_wbc does not tell its scale: {tecom_um_per_px} µm per px is assumed, from its cells' sizes."
        )
    return Report(f"Naming single cells: {classifier}", claims, tables, remarks)


def _tecom(folder: Path, classifier: str, device: str, um_per_px: float) -> tuple[list[str], NDArray[Any]]:
    """Kinds, and their confusion; band and segmented are one there, and kinds that it does not have are `other`."""
    labels = pd.read_csv(folder / "labels.csv", dtype=str)
    patches, true = [], list(labels["label"])
    for stem in labels["image"]:
        pixels = read_field(UPath(folder / "images" / f"{stem}.png"))
        patches.append(patch(pixels, pixels.shape[1] / 2, pixels.shape[0] / 2, um_per_px))
    classes = registry.resolve(classifier, "classifier")[1].classes
    kinds = [*sorted(set(true)), OTHER]
    matrix = np.zeros((len(kinds), len(kinds)), np.int64)
    for row, kind in enumerate(kinds):
        chosen = [i for i, label in enumerate(true) if label == kind]
        if not chosen:
            continue
        # The classifier does not know `neutrophil`: a kind's cells go in under any name, and what comes out counts.
        crops = Crops(np.stack([patches[i] for i in chosen]), (classes[0],) * len(chosen))
        for name, n in zip(classes, classifier_confusion(crops, classifier, device).sum(0), strict=True):
            named = COARSE.get(name, name)
            matrix[row, kinds.index(named if named in kinds else OTHER)] += n
    return kinds, matrix


def _rows(matrix: NDArray[Any], kinds: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for i, kind in enumerate(kinds):
        n = int(matrix[i].sum())
        if n:
            counts = dict(zip(kinds, matrix[i].tolist(), strict=True))
            rows.append({"": kind, **counts, "recall": float(matrix[i, i] / n)})
    return rows


def main() -> None:
    """The command line."""
    command = parser(__doc__ or "")
    command.add_argument("--data", type=Path, required=True, help="folder with pbc_cells.parquet and tecom_wbc")
    command.add_argument("--classifier", default="bundled:classifier")
    command.add_argument("--tecom-um-per-px", type=float, default=TECOM_UM_PER_PX)
    command.add_argument("--device", default="auto")
    chosen = command.parse_args()
    report = measure(chosen.data, chosen.classifier, registry.resolve_device(chosen.device), chosen.tecom_um_per_px)
    show(report, as_json=chosen.json)


if __name__ == "__main__":
    main()
