"""Misnaming undone: planted confusions are found out, and the limits are never narrower than sampling's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wbc.differential import clopper_pearson
from wbc.unfolding import Confusion, Shares, design_effect, unfold

KINDS = ("neutrophil", "lymphocyte", "monocyte")
EVERY = np.ones(3, bool)
# A third of the lymphocytes are called monocytes; names are neutrophil, lymphocyte, monocyte, unidentified.
PLANTED = np.array([[0.95, 0.0, 0.0, 0.05], [0.0, 0.6, 0.35, 0.05], [0.05, 0.05, 0.8, 0.1]])
NEVER_WRONG = np.eye(3, 4)
TRUTH = np.array([0.5, 0.4, 0.1])


def laboratories(rows: NDArray[np.float64], n: int = 4, cells: int = 200) -> NDArray[np.int64]:
    """Counts of laboratories that name cells alike, up to chance."""
    return np.random.default_rng(1).multinomial(cells, rows, size=(n, 3))


def slide(rows: NDArray[np.float64], cells: int = 400, fields: int = 40, seed: int = 2) -> NDArray[np.int64]:
    """Cells by field and name, of the true shares, named by `rows`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(rng.multinomial(cells, np.full(fields, 1 / fields)), TRUTH @ rows)


def shares_of(named: NDArray[np.int64], confusion: Confusion, counted: NDArray[np.bool_] = EVERY) -> Shares:
    shares = unfold(named, confusion, counted)
    assert shares is not None
    return shares


@pytest.mark.parametrize("hits", [0, 1, 20, 199, 200])
def test_where_names_are_never_wrong_the_limits_are_those_of_sampling(hits: int) -> None:
    own = np.array(NEVER_WRONG * 100_000, np.int64)
    shares = shares_of(np.array([[hits, 200 - hits, 0, 0]]), Confusion(KINDS, own[None][:0], own))
    low, high = clopper_pearson(np.array([hits, 200 - hits, 0]), 200)
    np.testing.assert_allclose(shares.mean, [hits / 200, 1 - hits / 200, 0], atol=1e-3)
    np.testing.assert_allclose(shares.low, low, atol=1e-3)
    np.testing.assert_allclose(shares.high, high, atol=1e-3)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_confusion_is_undone(own: bool, seed: int) -> None:
    counts = laboratories(PLANTED)
    confusion = Confusion(KINDS, counts[1:], counts[0]) if own else Confusion(KINDS, counts)
    named = slide(PLANTED, seed=seed)
    shares, plain = shares_of(named, confusion), named.sum(0)[:3] / named.sum()
    assert plain[2] > 0.2
    low, high = clopper_pearson(named.sum(0)[:3], int(named.sum()))
    assert not ((low <= TRUTH) & (high >= TRUTH))[1:].any(), "limits of sampling alone miss the truth"
    assert ((shares.low <= TRUTH) & (shares.high >= TRUTH)).all()
    assert np.abs(shares.mean - TRUTH).max() < np.abs(plain - TRUTH).max() / 2


def test_own_cells_tell_more_than_other_laboratories() -> None:
    counts, named = laboratories(PLANTED), slide(PLANTED)
    others = shares_of(named, Confusion(KINDS, counts[1:]))
    taught = shares_of(named, Confusion(KINDS, counts[1:], counts[0]))
    assert ((taught.high - taught.low) < (others.high - others.low)).all()


def test_laboratories_that_differ_widen_the_limits() -> None:
    alike = laboratories(PLANTED)
    unlike = np.array([laboratories(rows, 1)[0] for rows in (PLANTED, NEVER_WRONG, PLANTED, NEVER_WRONG)])
    named = slide(PLANTED)
    told, untold = shares_of(named, Confusion(KINDS, alike)), shares_of(named, Confusion(KINDS, unlike))
    assert ((untold.high - untold.low) > (told.high - told.low))[1:].all()


def test_cells_that_cluster_by_field_widen_the_limits() -> None:
    own = np.array(NEVER_WRONG * 1000, np.int64)
    apart = np.array([[10, 0, 0, 0], [0, 10, 0, 0]] * 10)
    mixed = np.array([[5, 5, 0, 0]] * 20)
    confusion = Confusion(KINDS, own[None][:0], own)
    clustered, spread = shares_of(apart, confusion), shares_of(mixed, confusion)
    np.testing.assert_allclose(clustered.mean, spread.mean, atol=0.01)
    assert clustered.high[0] - clustered.low[0] > 2 * (spread.high[0] - spread.low[0])


def test_the_design_effect_of_pure_fields_is_their_size() -> None:
    rng = np.random.default_rng(0)
    pure = np.repeat(np.eye(2, dtype=np.int64), 200, axis=0) * 5
    assert design_effect(pure, rng) == pytest.approx(5, rel=0.2)
    drawn = rng.multinomial(np.full(400, 5), [0.5, 0.5])
    assert design_effect(drawn, rng) == pytest.approx(1, abs=0.2)
    assert design_effect(drawn[:1], rng) == design_effect(drawn[:0], rng) == 1


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=4, max_size=4), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 60), min_size=12, max_size=12), min_size=0, max_size=3),
)
def test_shares_sum_to_one_and_lie_within_their_limits(fields: list[list[int]], places: list[list[int]]) -> None:
    named, counts = np.array(fields), np.array(places, np.int64).reshape(-1, 3, 4)
    shares = unfold(named, Confusion(KINDS, counts), EVERY)
    if not named.sum():
        assert shares is None
        return
    assert shares is not None
    assert shares.mean.sum() == pytest.approx(1)
    assert ((shares.low >= 0) & (shares.low <= shares.mean) & (shares.mean <= shares.high) & (shares.high <= 1)).all()


def test_the_same_input_gives_the_same_shares() -> None:
    first, second = (shares_of(slide(PLANTED), Confusion(KINDS, laboratories(PLANTED))) for _ in range(2))
    for a, b in ((first.mean, second.mean), (first.low, second.low), (first.high, second.high)):
        np.testing.assert_array_equal(a, b)


def test_kinds_that_do_not_count_are_taken_out_of_the_denominator() -> None:
    counted = np.array([True, True, False])
    shares = shares_of(slide(NEVER_WRONG), Confusion(KINDS, laboratories(NEVER_WRONG)), counted)
    assert shares.mean[2] == 0
    assert shares.mean[:2] == pytest.approx(TRUTH[:2] / 0.9, abs=0.06)


def test_which_kinds_are_measured() -> None:
    counts = laboratories(PLANTED, n=2, cells=10)
    assert Confusion(KINDS, counts).measured.all()
    assert not Confusion(KINDS, counts[:1]).measured.any(), "one laboratory tells nothing of how they differ"
    own = np.zeros((3, 4), np.int64)
    own[1, 1] = 10
    assert Confusion(KINDS, counts[:0], own).measured.tolist() == [False, True, False]


@pytest.mark.parametrize("counts", [np.zeros((1, 2, 4), np.int64), np.full((1, 3, 4), -1)])
def test_counts_that_cannot_be_are_refused(counts: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match=r"counts|negative"):
        Confusion(KINDS, counts)
