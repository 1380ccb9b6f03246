"""The cells to name come from every kind and all over the feature space, the unsure among them, always the same."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wbc.training.choice import LOOKED_AT, choose, shortlist


def clouds(n_clouds: int, of_each: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 10, (n_clouds, 16))
    return (middles[:, None] + rng.normal(0, 0.3, (n_clouds, of_each, 16))).reshape(-1, 16).astype(np.float32)


def test_every_kind_gets_its_share_or_all_that_it_has() -> None:
    features = np.random.default_rng(0).normal(size=(63, 8)).astype(np.float32)
    kinds = ["lymphocyte"] * 40 + ["monocyte"] * 20 + ["basophil"] * 3
    chosen = choose(features, kinds, np.linspace(0, 1, 63), 10)
    names = [kinds[i] for i in chosen]
    assert {kind: names.count(kind) for kind in kinds} == {"lymphocyte": 10, "monocyte": 10, "basophil": 3}


def test_all_corners_of_the_feature_space_are_covered() -> None:
    """Seven clouds of cells of one kind, one of them small, and seven typical cells among ten: one from each."""
    features = np.concatenate([clouds(7, 30), clouds(7, 30)[180:182]])[: 6 * 30 + 3]
    chosen = choose(features, ["lymphocyte"] * len(features), np.full(len(features), 0.9), 10)
    assert {i // 30 for i in chosen} == set(range(7))


def test_the_least_sure_are_among_them() -> None:
    features = clouds(1, 100)
    scores = np.full(100, 0.9)
    scores[[3, 50, 77]] = (0.41, 0.42, 0.43)
    assert {3, 50, 77} <= set(choose(features, ["monocyte"] * 100, scores, 10).tolist())


@given(st.integers(1, 12), st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_chosen_cells_are_distinct_and_always_the_same(per_kind: int, kinds: list[str]) -> None:
    rng = np.random.default_rng(len(kinds))
    features = rng.integers(0, 2, (len(kinds), 3)).astype(np.float32)  # many cells are equal
    scores = rng.random(len(kinds))
    chosen = choose(features, kinds, scores, per_kind).tolist()
    assert chosen == sorted(set(chosen))
    assert chosen == choose(features, kinds, scores, per_kind).tolist()
    assert [kinds[i] for i in chosen].count("a") == min(per_kind, kinds.count("a"))


def test_the_shortlist_is_short_and_holds_the_unsure_and_cells_from_all_over() -> None:
    kinds, scores = ["a"] * 5000 + ["b"] * 7, np.linspace(1, 0, 5007)
    short = shortlist(kinds, scores, 10)
    of_a = short[short < 5000]
    assert len(of_a) == LOOKED_AT * 10
    assert set(range(4950, 5000)) <= set(of_a.tolist())
    assert np.diff(of_a[of_a < 4950]).max() < 150
    assert set(range(5000, 5007)) <= set(short.tolist())


def test_no_cells_no_choice() -> None:
    none = np.zeros(0)
    assert choose(np.zeros((0, 4)), [], none, 10).tolist() == shortlist([], none, 10).tolist() == []
