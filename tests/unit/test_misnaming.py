"""A differential whose misnaming is undone: which rows tell it, what they sum to, the flag of a crossed threshold."""

import numpy as np
import pytest

from wbc.differential import differential_of
from wbc.misnaming import CHOSEN, confusion_of, corrected
from wbc.taxonomy import load_taxonomy
from wbc.types import Differential, DifferentialRow
from wbc.unfolding import Confusion

BLOOD, MARROW = load_taxonomy("blood"), load_taxonomy("marrow_icsh")
COMMON = ("neutrophil", "eosinophil", "basophil", "lymphocyte", "monocyte")


def row(differential: Differential, cell_type: str) -> DifferentialRow:
    return next(r for r in differential.rows if r.cell_type == cell_type)


def measured(names: dict[str, dict[str, int]], places: tuple[str, ...] = ("a", "b", "c")) -> Confusion:
    """A confusion of laboratories that name alike: true type -> name -> cells."""
    cells = [(true, name) for true, own in names.items() for name, n in own.items() for _ in range(n)]
    every = [(true, name, place) for place in places for true, name in cells]
    true, named, where = zip(*every, strict=True)
    confusion = confusion_of(named, true, where, None, BLOOD if "myeloblast" not in names else MARROW)
    assert confusion is not None
    return confusion


def count(cells: dict[str, int], confusion: Confusion) -> Differential:
    types = [name for name, n in cells.items() for _ in range(n)]
    fields = [f"f{i % 20}" for i in range(len(types))]
    taxonomy = MARROW if "blast" in confusion.kinds else BLOOD
    return corrected(differential_of(types, taxonomy), types, fields, confusion, taxonomy)


RIGHT = {kind: {kind: 100} for kind in COMMON}


def test_labels_and_names_count_as_the_roots_of_their_tree() -> None:
    confusion = measured(
        {"segmented_neutrophil": {"band_neutrophil": 7, "eosinophil": 3}, "neutrophil": {"neutrophil": 2}}
    )
    assert confusion.kinds == ("neutrophil", "eosinophil")
    assert confusion.counts[0].tolist() == [[9, 3, 0], [0, 0, 0]]


def test_types_that_the_taxonomy_does_not_know_are_left_out() -> None:
    true, named = ["lymphocyte", "myeloblast", "platelet"] * 20, ["lymphocyte"] * 60
    confusion = confusion_of(named, true, ["a"] * 30 + ["b"] * 30, None, BLOOD)
    assert confusion is not None
    assert confusion.kinds == ("lymphocyte",)
    assert confusion.counts.sum() == 20


def test_cells_that_were_refused_are_in_no_confusion() -> None:
    named = ["lymphocyte"] * 40 + ["not_a_white_cell"] * 20
    confusion = confusion_of(named, ["lymphocyte"] * 60, ["a", "b"] * 30, None, BLOOD)
    assert confusion is not None
    assert confusion.counts.sum() == 40


def test_without_a_measured_kind_there_is_no_confusion() -> None:
    assert confusion_of([], [], [], None, BLOOD) is None
    assert confusion_of(["lymphocyte"] * 40, ["lymphocyte"] * 40, ["a"] * 40, None, BLOOD) is None
    assert confusion_of(["lymphocyte"] * 40, ["lymphocyte"] * 40, ["a"] * 40, "a", BLOOD) is not None


def test_kinds_that_were_not_measured_stay_uncorrected() -> None:
    found = count({"neutrophil": 100, "lymphocyte": 50, "promyelocyte": 10, "unidentified": 5}, measured(RIGHT))
    told = {r.cell_type for r in found.rows if r.percent_corrected is not None}
    assert told == set(COMMON)
    for silent in ("immature_granulocyte", "promyelocyte", "segmented_neutrophil", "unidentified", "rbc"):
        assert (row(found, silent).low, row(found, silent).high) == (None, None)
    assert row(found, "promyelocyte").percent == pytest.approx(100 * 10 / 165)


def test_percentages_sum_to_100_and_unidentified_cells_are_shared_out() -> None:
    names = {kind: {kind: 80, "unidentified": 20} for kind in COMMON}
    found = count({"neutrophil": 100, "lymphocyte": 60, "unidentified": 40, "rbc": 900}, measured(names))
    every = [r.percent_corrected for r in found.rows if r.percent_corrected is not None]
    assert sum(every) == pytest.approx(100)
    assert row(found, "neutrophil").percent_corrected == pytest.approx(62, abs=4)
    plain = row(found, "neutrophil")
    assert (plain.percent, plain.count) == (50, 100)


def test_a_slide_without_a_cell_has_no_corrected_percentage() -> None:
    for cells in ({}, {"rbc": 50}, {"erythroblast": 50}):
        found = count(cells, measured(RIGHT))
        assert all(r.percent_corrected is None for r in found.rows)


@pytest.mark.parametrize(("blasts", "flagged"), [(2, True), (20, False)])
def test_a_threshold_between_plain_and_corrected_is_flagged(blasts: int, flagged: bool) -> None:
    # Two of three blasts are taken for lymphocytes, as everywhere.
    names = {"myeloblast": {"blast": 33, "lymphocyte": 67}, **{k: {k: 100} for k in ("neutrophil", "lymphocyte")}}
    confusion = measured(names, tuple("abcdef"))
    found = count({"neutrophil": 170 - blasts, "lymphocyte": 18 + 6 * blasts, "blast": 3 * blasts}, confusion)
    percent, undone = row(found, "blast").percent, row(found, "blast").percent_corrected
    assert percent is not None
    assert undone is not None
    assert undone > percent
    assert ("corrected_crosses:blast:5" in found.flags) == flagged == (percent < 5 <= undone)


def test_cells_of_the_own_laboratory_are_apart_from_the_others() -> None:
    confusion = confusion_of(["lymphocyte"] * 30, ["monocyte"] * 30, ["a", "b", "mine"] * 10, "mine", BLOOD)
    assert confusion is not None
    assert confusion.counts.shape[0] == 2
    assert confusion.own is not None
    np.testing.assert_array_equal(confusion.own.sum(1), [0, 10])


def test_cells_of_unlike_weights_are_worth_fewer_alike() -> None:
    """Ten lymphocytes, one of which was asked for as one of few monocytes and stands for one of them."""
    named = ["lymphocyte"] * 9 + ["monocyte"]
    weights = np.array([30.0] * 9 + [1.0])
    confusion = confusion_of(named * 2, ["lymphocyte"] * 20, ["mine"] * 20, "mine", BLOOD, np.tile(weights, 2))
    assert confusion is None  # twice 271 squared by 8,101 is worth 18.1 cells, and half of these are too few
    confusion = confusion_of(named * 4, ["lymphocyte"] * 40, ["mine"] * 40, "mine", BLOOD, np.tile(weights, 4))
    assert confusion is not None
    assert confusion.own is not None
    row = confusion.own[confusion.kinds.index("lymphocyte")]
    assert row.sum() == pytest.approx(CHOSEN * 4 * 271**2 / 8101)
    assert row[confusion.kinds.index("monocyte")] / row.sum() == pytest.approx(1 / 271)
    alike, unweighted = (
        confusion_of(named * 4, ["lymphocyte"] * 40, ["mine"] * 40, "mine", BLOOD, w) for w in (np.full(40, 7.0), None)
    )
    assert alike is not None
    assert unweighted is not None
    assert unweighted.own is not None
    np.testing.assert_array_equal(alike.own, CHOSEN * unweighted.own)


def test_what_a_person_named_stands_as_it_is() -> None:
    """Lymphocytes are named monocytes as often as not: of cells that people named nothing is left to undo."""
    confusion = measured(RIGHT | {"lymphocyte": {"lymphocyte": 50, "monocyte": 50}})
    types = ["lymphocyte"] * 40 + ["monocyte"] * 60 + ["neutrophil"] * 100
    fields = [f"f{i % 20}" for i in range(len(types))]
    plain = differential_of(types, BLOOD)
    machine, half, people = (
        row(corrected(plain, types, fields, confusion, BLOOD, np.arange(len(types)) < n), "lymphocyte")
        for n in (0, 70, len(types))
    )
    means = [told.percent_corrected or 0 for told in (people, half, machine)]
    assert means[0] == pytest.approx(20)
    assert means[0] + 1 < means[1] < means[2] - 1
    assert (people.low, people.high) == (pytest.approx(people.ci_low, abs=0.2), pytest.approx(people.ci_high, abs=0.2))
    widths = [(told.high or 0) - (told.low or 0) for told in (people, half, machine)]
    assert widths == sorted(widths)
