"""Reference cells are part of a model: kept beside its weights, in its digest, and refused where they are others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wbc.models import builders, registry
from wbc.models.cards import ModelCard
from wbc.models.reference_cells import ReferenceCells, keep_reference_cells, read_reference_cells
from wbc.models.registry import ModelError

HALF = (0.5, 0.5, 0.5)
NET = {"backbone": "test_efficientnet"}
CARD = ModelCard(
    "small", "1", "classifier", "crop_classifier", NET, ("lymphocyte", "monocyte"), 0.2, 32, HALF, HALF, ""
)
CELLS = ReferenceCells(
    np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]], np.float16),
    ("lymphocyte", "monocyte", "lymphocyte"),
    ("here", "there", "there"),
    own="here",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    registry.save(tmp_path / "model", builders.build(CARD), CARD)
    return tmp_path / "model"


def same(a: ReferenceCells, b: ReferenceCells) -> bool:
    rest = (a.cell_types, a.laboratories, a.own) == (b.cell_types, b.laboratories, b.own)
    rest = rest and np.array_equal(
        a.weights if a.weights is not None else [], b.weights if b.weights is not None else []
    )
    return rest and bool((a.probabilities == b.probabilities).all()) and b.probabilities.dtype == np.float16


def test_what_is_kept_is_what_is_read(model: Path) -> None:
    before, _ = registry.resolve(str(model), "classifier")
    assert read_reference_cells(before) is None
    card = keep_reference_cells(model, CELLS)
    ref, read = registry.resolve(str(model), "classifier")
    assert read == card
    assert ref.digest != before.digest
    found = read_reference_cells(ref)
    assert found is not None
    assert same(CELLS, found)


def test_the_same_cells_are_the_same_file_and_without_an_own_laboratory_there_is_none() -> None:
    strangers = replace(CELLS, own=None)
    assert strangers.to_bytes() == strangers.to_bytes() != CELLS.to_bytes()
    assert ReferenceCells.from_bytes(strangers.to_bytes()).own is None


def test_what_cells_stand_for_is_kept_and_changes_no_file_without() -> None:
    weighed = replace(CELLS, weights=np.array([1, 2.5, 4], np.float32))
    assert same(ReferenceCells.from_bytes(weighed.to_bytes()), weighed)
    assert not same(weighed, CELLS)
    assert ReferenceCells.from_bytes(CELLS.to_bytes()).weights is None
    assert same(weighed.take(np.array([True, False, True])), CELLS.take(np.array([True, False, True]))) is False


def test_elsewhere_is_all_but_the_own_laboratory() -> None:
    assert CELLS.elsewhere.laboratories == ("there", "there")
    assert CELLS.elsewhere.own is None
    assert same(replace(CELLS, own=None).elsewhere, replace(CELLS, own=None))


def test_other_weights_are_saved_without_them(model: Path) -> None:
    card = keep_reference_cells(model, CELLS)
    assert registry.save(model, builders.build(card), card).reference_sha256 == ""
    assert read_reference_cells(registry.resolve(str(model), "classifier")[0]) is None


def test_a_model_without_them_has_the_digest_that_it_always_had() -> None:
    # As computed before there were any: counts that stand, stand.
    assert CARD.digest == "cd1b1935284b786a21bb5f9fb6691a3dd8413ad91a3a211c08f0741ede491313"
    assert replace(CARD, reference_sha256="1" * 64).digest != CARD.digest


@pytest.mark.parametrize("content", [None, b"", b"other"])
def test_a_file_that_is_not_the_cards_is_refused(model: Path, content: bytes | None) -> None:
    keep_reference_cells(model, CELLS)
    file = model / registry.REFERENCE_CELLS
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelError, match=r"reference_cells\.safetensors"):
        registry.resolve(str(model), "classifier")


def test_a_model_that_changed_meanwhile_is_refused(model: Path) -> None:
    ref, _ = registry.resolve(str(model), "classifier")
    keep_reference_cells(model, CELLS)
    with pytest.raises(ModelError, match="the count began with"):
        read_reference_cells(ref)


def test_cells_of_other_classes_are_refused(model: Path) -> None:
    with pytest.raises(ValueError, match="3 columns for the 2 classes"):
        keep_reference_cells(model, ReferenceCells(np.zeros((1, 3), np.float16), ("lymphocyte",), ("here",)))


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", registry.sha256_of(b"").encode()])
def test_what_holds_no_reference_cells_says_so(content: bytes) -> None:
    with pytest.raises(ValueError, match="no reference cells"):
        ReferenceCells.from_bytes(content)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cell_types": ("lymphocyte",)}, "1 types"),
        ({"laboratories": ("here",)}, "1 laboratories"),
        ({"weights": np.ones(2, np.float32)}, "weights are not 3 numbers over 0"),
        ({"weights": np.array([1, 0, 2], np.float32)}, "weights are not 3 numbers over 0"),
        ({"weights": np.array([1, np.nan, 2], np.float32)}, "weights are not 3 numbers over 0"),
        ({"own": "nowhere"}, "no cell of the own laboratory 'nowhere'"),
        ({"probabilities": np.full((3, 2), np.nan, np.float16)}, "between 0 and 1"),
        ({"probabilities": np.full((3, 2), 0.5)}, "float16"),
    ],
)
def test_cells_that_contradict_themselves_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(CELLS, **changes)  # type: ignore[arg-type]


def test_fewer_cells_are_drawn_evenly_and_the_same_each_time() -> None:
    n = 60
    many = ReferenceCells(
        np.zeros((n, 2), np.float16), ("lymphocyte", "monocyte") * (n // 2), ("a",) * 40 + ("b",) * 20, own="b"
    )
    few = many.at_most(15)
    assert sorted(set(zip(few.laboratories, few.cell_types, strict=True))) == [
        ("a", "lymphocyte"),
        ("a", "monocyte"),
        ("b", "lymphocyte"),
        ("b", "monocyte"),
    ]
    assert len(few.cell_types) == 15 + 15 + 10 + 10
    assert same(few, many.at_most(15))
    assert many.take(np.arange(n) < 40).own is None
