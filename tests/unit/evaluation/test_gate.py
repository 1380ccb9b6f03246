"""The gate: who is better by more than noise and costs no kind of cell gets through, and nobody else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wbc.datasets.labels import LabelledPicture
from wbc.evaluation import gate
from wbc.evaluation.boxes import FoundSet, confusion_of, score_boxes, score_roughly
from wbc.evaluation.frozen import Frozen, FrozenSet, top_kinds
from wbc.evaluation.gate import ALL_SETS, GateSettings, KindRow, judge
from wbc.evaluation.noise import NoiseSettings, Told, draw, fall_by_chance, limits, mean_over_kinds, whole
from wbc.models import builders, registry
from wbc.models.cards import ModelCard, ModelError
from wbc.taxonomy import load_taxonomy
from wbc.types import Detections

BLOOD = load_taxonomy("blood")


def told(right: list[bool], kind: str = "wbc") -> Told:
    n = len(right)
    return Told(np.full(n, kind, object), np.array(right, bool), np.arange(n), n)


def found_set(seed: int, n_fields: int = 4) -> FoundSet:
    """Fields with cells of two classes, most of them found, beside some that are none."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for i in range(n_fields):
        n = int(rng.integers(0, 12))
        corners = rng.uniform(0, 400, (n, 2))
        boxes = np.hstack([corners, corners + rng.uniform(10, 60, (n, 2))]).astype(np.float32)
        labels = rng.integers(1, 3, n)
        truth.append((LabelledPicture(Path(f"{i}.png"), boxes, tuple("ab"[k - 1] for k in labels)), 500, 500))
        false = rng.uniform(0, 400, (4, 2))
        seen = np.vstack([boxes + rng.normal(0, 3, boxes.shape), np.hstack([false, false + 30])]).astype(np.float32)
        scores = rng.uniform(0.05, 1, n + 4).astype(np.float32)
        found.append(Detections(seen, scores, np.append(labels, rng.integers(1, 3, 4)).astype(np.int64)))
    return FoundSet("s", ("a", "b"), tuple(truth), tuple(found))


@given(st.integers(0, 10_000))
def test_ap50_of_all_fields_is_pycocotools_own(seed: int) -> None:
    found = found_set(seed)
    figures, score = score_boxes(found)
    own = score.ap50(whole(score.n_fields))[0]
    np.testing.assert_allclose(own, [figures["AP50_a"], figures["AP50_b"]], atol=1e-12)
    roughly = score_roughly(found)
    np.testing.assert_array_equal(roughly.ap50(whole(4)), score.ap50(whole(4)))
    for kinds, right in (
        (roughly.told(0.5).kinds, roughly.told(0.5).right),
        (score.told(0.5).kinds, score.told(0.5).right),
    ):
        assert len(kinds) == len(right) == sum(len(picture.labels) for picture, _, _ in found.truth)


def test_a_field_drawn_twice_counts_as_two_fields() -> None:
    found = found_set(3)
    twice = replace(found, truth=(*found.truth, found.truth[1]), found=(*found.found, found.found[1]))
    drawn = score_roughly(found).ap50(np.array([[1, 2, 1, 1]]))
    np.testing.assert_allclose(drawn, score_roughly(twice).ap50(whole(5)), atol=1e-12)


def test_nothing_found_and_nothing_there() -> None:
    found = found_set(3)
    blind = replace(found, found=(Detections.empty(),) * 4)
    figures, score = score_boxes(blind)
    assert figures["AP50"] == 0
    assert not score.told(0.0).right.any()
    empty = replace(found, truth=tuple((LabelledPicture(p.path, p.boxes[:0], ()), w, h) for p, w, h in found.truth))
    figures, score = score_boxes(empty)
    assert np.isnan(figures["AP50"])
    assert np.isnan(score.ap50(whole(4))).all()


def test_a_confusion_has_every_cell_and_every_box_once() -> None:
    found = found_set(5)
    matrix = confusion_of(found, 0.5)
    assert matrix[:2].sum() == sum(len(picture.labels) for picture, _, _ in found.truth)
    assert matrix[:, :2].sum() == sum((cells.scores >= 0.5).sum() for cells in found.found)
    assert matrix[2, 2] == 0


def test_limits_of_a_sensitivity_hold_it_and_narrow_with_cells() -> None:
    widths = []
    for n in (20, 2000):
        cells = told([i % 4 != 0 for i in range(n)])
        settings = NoiseSettings(400)
        low, high = limits(cells.sensitivities(["wbc"], draw({"s": n}, settings)["s"])[:, 0], settings)
        assert low < 0.75 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_a_mean_over_kinds_passes_over_what_is_not_there() -> None:
    np.testing.assert_array_equal(mean_over_kinds(np.array([[0.5, np.nan], [np.nan, np.nan]])), [0.5, np.nan])


def test_a_fall_by_chance_is_the_sign_test() -> None:
    before, after = np.array([True] * 5), np.array([False] * 5)
    assert fall_by_chance(before, after) == pytest.approx(0.5**5)
    assert fall_by_chance(before, before) == 1


def test_kinds_are_the_coarsest_labels() -> None:
    labels = ["band_neutrophil", "neutrophil", "lymphocyte", "metamyelocyte"]
    assert top_kinds(labels, BLOOD) == ("neutrophil", "metamyelocyte", "lymphocyte")


def row(before: list[bool], after: list[bool]) -> KindRow:
    (only,) = gate._kind_rows({"s": (told(before), told(after))}, GateSettings())
    return only


def test_a_kind_that_falls_by_more_than_the_points_stops_a_challenger() -> None:
    many = [True] * 100
    assert row(many, [False] * 4 + [True] * 96).verdict == "fell"
    assert row(many, [False] * 3 + [True] * 97).verdict == "kept"
    # One of two basophils is 50 points and no proof; five of five are.
    assert row([True] * 2, [True, False]).verdict == "too few to tell"
    assert row([True] * 5, [False] * 5).verdict == "fell"


def test_few_cells_in_each_set_are_judged_together() -> None:
    before, after = told([True] * 20), told([False] * 2 + [True] * 18)
    rows = gate._kind_rows({"s": (before, after), "t": (before, after)}, GateSettings())
    assert [(r.set, r.cells, r.verdict) for r in rows] == [
        ("s", 20, "too few to tell"),
        ("t", 20, "too few to tell"),
        (ALL_SETS, 40, "fell"),
    ]


def detector(folder: Path, level: float, smallest_px: int = 12) -> str:
    """A detector of dark discs; what is lighter than its level it does not see."""
    card = ModelCard(
        "dark", "1", "detector", "dark_regions", {"level": level, "smallest_px": smallest_px}, ("rbc",),
        0.2, 0, (0.5,) * 3, (0.5,) * 3, "",
    )  # fmt: skip
    registry.save(folder, builders.build(card), card)
    return str(folder)


@pytest.fixture
def frozen(tmp_path: Path) -> Frozen:
    """Two scanners with four fields each: dark discs, and on the second light ones beside them."""
    sets = []
    for name, shades in (("dark", (60, 60)), ("both", (60, 120))):
        pictures = []
        for i in range(4):
            field, boxes = np.full((160, 260, 3), 230, np.uint8), []
            for j in range(8):
                y, x = 20 + 70 * (j // 4), 20 + 60 * (j % 4) + i
                field[y : y + 30, x : x + 30] = shades[j % 2]
                boxes.append((x, y, x + 30, y + 30))
            Image.fromarray(field).save(tmp_path / f"{name}-{i}.png")
            labels = ("rbc",) * len(boxes)
            pictures.append((LabelledPicture(tmp_path / f"{name}-{i}.png", np.array(boxes, np.float32), labels), 0.2))
        sets.append(FrozenSet(name, tuple(pictures)))
    return Frozen(tuple(sets), BLOOD)


def test_the_better_detector_gets_through_and_the_worse_does_not(tmp_path: Path, frozen: Frozen) -> None:
    blind, seeing = detector(tmp_path / "blind", 0.35), detector(tmp_path / "seeing", 0.6)
    better = judge(blind, seeing, frozen, "cpu")
    assert better.promoted
    assert better.reasons == ()
    assert better.gain_low > 0
    assert better.champion_main["dark"] == better.challenger_main["dark"] == pytest.approx(1.0, abs=1e-6)
    assert better.champion_main["both"] < 0.6 < better.challenger_main["both"]
    assert "is the champion now" in better.headline()
    worse = judge(seeing, blind, frozen, "cpu")
    assert not worse.promoted
    assert worse.reasons[0].startswith("AP50 is")
    assert "rbc of both: sensitivity falls from 100.0 to 50.0 %" in worse.reasons
    assert [line["set"] for line in worse.lines()] == [ALL_SETS, "dark", "both", "dark", "both"]


def test_one_that_is_just_as_good_is_no_champion(tmp_path: Path, frozen: Frozen) -> None:
    alike = judge(detector(tmp_path / "a", 0.6), detector(tmp_path / "b", 0.6, 13), frozen, "cpu")
    assert not alike.promoted
    assert "not better by more than noise" in alike.reasons[0]


def test_a_model_is_not_judged_beside_itself(tmp_path: Path, frozen: Frozen) -> None:
    same = detector(tmp_path / "a", 0.6)
    with pytest.raises(ModelError, match="are one model"):
        judge(same, same, frozen, "cpu")
    with pytest.raises(ModelError, match="is a classifier, not a detector"):
        judge(same, "bundled:classifier", frozen, "cpu")
    with pytest.raises(ValueError, match="mean_recall is no figure of a detector"):
        judge(same, detector(tmp_path / "b", 0.5), frozen, "cpu", GateSettings(main="mean_recall"))
