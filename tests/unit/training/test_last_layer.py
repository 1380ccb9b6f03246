"""A last layer learns what a few named cells show, keeps what they do not, and says when nothing is gained."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from wbc.taxonomy import label_matrix, load_taxonomy
from wbc.training.last_layer import (
    STRENGTHS,
    Floats,
    Gain,
    LastLayer,
    NamedCells,
    cross_validate,
    fit,
    folds,
    is_right,
)

CLASSES = ("band_neutrophil", "segmented_neutrophil", "lymphocyte", "monocyte")
N_FEATURES = 40


def nothing_known() -> LastLayer:
    return LastLayer(np.zeros((4, N_FEATURES)), np.zeros(4))


def planted(names: list[str], seed: int = 0, spread: float = 1.0) -> NamedCells:
    """Cells of which each class has its own middle in the feature space; two views of each."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(99).normal(0, 1, (4, N_FEATURES))
    covers = label_matrix(load_taxonomy("blood"), CLASSES, names) > 0
    classes = [rng.choice(np.flatnonzero(row)) for row in covers]
    features = middles[classes][:, None] + rng.normal(0, spread, (len(names), 2, N_FEATURES))
    return NamedCells(features.astype(np.float32), covers, tuple(names))


def accuracy(layer: LastLayer, cells: NamedCells) -> float:
    return float(is_right(probabilities(layer, cells), cells.covers).mean())


def probabilities(layer: LastLayer, cells: NamedCells) -> Floats:
    odds = np.exp(layer.logits(cells.features))
    chances: Floats = (odds / odds.sum(2, keepdims=True)).mean(1)
    return chances


def test_planted_classes_are_recovered() -> None:
    cells = planted([name for name in CLASSES for _ in range(8)])
    layer = fit(cells, nothing_known(), cross_validate(cells, nothing_known()).strength)
    assert accuracy(nothing_known(), planted(list(CLASSES) * 50, seed=1)) == 0.25
    assert accuracy(layer, planted(list(CLASSES) * 50, seed=1)) > 0.97


def test_a_narrow_group_of_features_weighs_as_much_as_a_wide_one() -> None:
    """What four features tell is not drowned by two thousand that tell nothing."""
    names = [name for name in CLASSES for _ in range(10)]

    def told(seed: int, groups: tuple[int, ...]) -> NamedCells:
        cells = planted(names, seed=seed)
        nothing = np.random.default_rng(seed).normal(0, 1, (len(names), 2, 2000)).astype(np.float32)
        return NamedCells(np.concatenate([nothing, cells.features[..., :4]], 2), cells.covers, cells.names, groups)

    prior = LastLayer(np.zeros((4, 2004)), np.zeros(4))
    together, apart = (fit(told(0, groups), prior, 1e-2) for groups in ((), (2000, 4)))
    assert accuracy(apart, told(1, ())) > accuracy(together, told(1, ())) + 0.1
    with pytest.raises(ValueError, match=r"groups of \(2000,\) features, 2004 in all"):
        told(0, (2000,))


def test_without_cells_the_prior_holds() -> None:
    rng = np.random.default_rng(0)
    prior = LastLayer(rng.normal(size=(4, N_FEATURES)), rng.normal(size=4))
    none = NamedCells(np.zeros((0, 2, N_FEATURES), np.float32), np.zeros((0, 4), bool), ())
    assert fit(none, prior, STRENGTHS[0]) is prior


def test_the_dearer_a_step_the_nearer_the_prior() -> None:
    prior = LastLayer(np.random.default_rng(0).normal(0, 0.1, (4, N_FEATURES)), np.zeros(4))
    cells = planted(list(CLASSES) * 5)
    away = [np.abs(fit(cells, prior, strength).weight - prior.weight).max() for strength in (1e6, 1.0, 1e-3)]
    assert away[0] < 1e-4 < away[1] < away[2]


def test_what_is_not_named_stays_as_the_prior_has_it() -> None:
    cells = planted([name for name in CLASSES for _ in range(30)])
    knowing = fit(cells, nothing_known(), 1e-2)
    taught = fit(planted(["lymphocyte"] * 6 + ["monocyte"] * 6, seed=2), knowing, 1e-2)
    others = planted(["band_neutrophil", "segmented_neutrophil"] * 50, seed=3)
    assert accuracy(taught, others) >= accuracy(knowing, others) - 0.1


def test_a_coarse_name_trains_through_the_tree() -> None:
    prior = fit(planted(["band_neutrophil", "segmented_neutrophil"] * 20), nothing_known(), 1e-2)
    coarse = planted(["neutrophil"] * 20 + ["lymphocyte"] * 20 + ["monocyte"] * 20, seed=4)
    layer = fit(coarse, prior, 1e-3)
    test = planted(["neutrophil", "lymphocyte", "monocyte"] * 40, seed=5)
    assert accuracy(layer, test) > 0.97
    fine = planted(["band_neutrophil", "segmented_neutrophil"] * 50, seed=6)
    assert accuracy(layer, fine) > 0.95  # what a coarse name does not tell, the prior still knows


def test_the_fit_is_the_minimum_in_the_whole_feature_space() -> None:
    """Reducing the features to the directions that the cells span must not cost anything."""
    cells = planted(list(CLASSES) * 4)
    layer, strength = fit(cells, nothing_known(), 1e-2), 1e-2
    rng = np.random.default_rng(0)
    lowest = penalised(layer, cells, strength)
    for _ in range(20):
        nudged = LastLayer(layer.weight + rng.normal(0, 1e-3, layer.weight.shape), layer.bias)
        assert penalised(nudged, cells, strength) > lowest


def penalised(layer: LastLayer, cells: NamedCells, strength: float) -> float:
    """What the docstring of `fit` promises to be smallest, of a prior of zeros."""
    rows = cells.features.reshape(-1, N_FEATURES).astype(np.float64)
    mean, spread = rows.mean(0), rows.std(0)
    scale = spread * np.sqrt(N_FEATURES)
    log_p = layer.logits(rows) - np.log(np.exp(layer.logits(rows)).sum(1, keepdims=True))
    covers = np.repeat(cells.covers, 2, 0)
    nll = -np.log((np.exp(log_p) * covers).sum(1)).mean()
    bias = layer.bias + layer.weight @ mean
    return float(nll + strength / 2 * (((layer.weight * scale) ** 2).sum() + (bias**2).sum()))


def test_cells_without_names_teach_too() -> None:
    """Two named cells a class hardly tell where the classes are, a hundred more of each, without names, do."""
    gains = []
    for seed in range(5):
        few = planted([name for name in CLASSES for _ in range(2)], seed, spread=2.0)
        others, test = (
            planted(list(CLASSES) * 100, 200 + seed, spread=2.0),
            planted(list(CLASSES) * 50, 100 + seed, 2.0),
        )
        layers = (fit(cells, nothing_known(), 1e-3) for cells in (few, replace(few, unnamed=others.features)))
        alone, together = (accuracy(layer, test) for layer in layers)
        gains.append(together - alone)
    assert np.mean(gains) > 0.03


def test_what_nobody_named_is_learnt_as_what_it_was_taken_for() -> None:
    """Cells of classes that no name covers are surely one of these to the prior, and stay so."""
    knowing = fit(planted([name for name in CLASSES for _ in range(30)]), nothing_known(), 1e-3)
    named = planted(["lymphocyte"] * 6 + ["monocyte"] * 6, seed=2)
    bands = planted(["band_neutrophil"] * 60, seed=3)
    together = fit(replace(named, unnamed=bands.features), knowing, 1e-3)
    assert accuracy(together, planted(["band_neutrophil"] * 50, seed=4)) >= accuracy(knowing, bands) - 0.02


def test_cells_that_nothing_is_sure_of_change_nothing() -> None:
    """A penalty that no name outweighs leaves every class as likely: none of the others counts as named."""
    cells = planted(list(CLASSES) * 3)
    away = fit(replace(cells, unnamed=planted(list(CLASSES), seed=1).features), nothing_known(), 1e6)
    assert np.abs(away.weight).max() < 1e-4


def test_others_must_be_told_by_the_same_features() -> None:
    cells = planted(list(CLASSES))
    with pytest.raises(ValueError, match="of named cells"):
        replace(cells, unnamed=cells.features[..., :-1])


def test_gain_is_told_by_cells_held_out() -> None:
    cells = planted([name for name in CLASSES for _ in range(10)])
    gain = cross_validate(cells, nothing_known())
    assert gain.pays
    assert gain.after.mean() > 0.9 > gain.before.mean()


def test_names_that_mean_nothing_gain_nothing() -> None:
    """Names thrown by dice, against a prior that knows the cells: what is gained on cells held out is none."""
    cells = planted([name for name in CLASSES for _ in range(10)])
    prior = fit(cells, nothing_known(), 1e-3)
    shuffled = np.random.default_rng(0).permutation(len(cells.names))
    diced = NamedCells(cells.features, cells.covers[shuffled], tuple(cells.names[i] for i in shuffled))
    assert cross_validate(diced, nothing_known()).after.mean() < 0.5
    assert not cross_validate(cells, LastLayer(50 * prior.weight, 50 * prior.bias)).pays


def test_fewer_right_never_pays_however_likely_the_names() -> None:
    covers = np.tile([True, False], (3, 1))

    def pays(before: list[float], after: list[float]) -> bool:
        chances, later = (np.stack([np.array(c), 1 - np.array(c)], 1) for c in (before, after))
        return Gain(covers, chances, later, 0.01).pays

    assert not pays([0.6, 0.6, 0.1], [0.99, 0.49, 0.49])
    assert pays([0.6, 0.6, 0.1], [0.6, 0.6, 0.2])
    assert not pays([0.6, 0.6, 0.1], [0.6, 0.6, 0.1])
    assert pays([0.99, 0.99, 0.49], [0.51, 0.51, 0.51])


def test_each_cell_is_held_out_once_and_kinds_are_spread() -> None:
    names = ["a"] * 20 + ["b"] * 10 + ["c"]
    parts = folds(names)
    assert sorted(np.concatenate(parts).tolist()) == list(range(31))
    assert [sum(names[i] == "a" for i in part) for part in parts] == [4] * 5
    assert [sum(names[i] == "b" for i in part) for part in parts] == [2] * 5
    assert [part.tolist() for part in folds(names)] == [part.tolist() for part in parts]


def test_one_cell_cannot_be_held_out() -> None:
    with pytest.raises(ValueError, match="1 cells cannot be held out"):
        folds(["a"])


def test_cells_that_do_not_agree_are_refused() -> None:
    features: NDArray[np.float32] = np.zeros((2, 2, 3), np.float32)
    with pytest.raises(ValueError, match="3 names"):
        NamedCells(features, np.ones((2, 4), bool), ("a", "b", "c"))
    with pytest.raises(ValueError, match="covers no class"):
        NamedCells(features, np.zeros((2, 4), bool), ("a", "b"))
