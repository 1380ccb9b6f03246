"""The differential: Rümke's limits, percentages that sum, roll-ups, M:E, NRBC and every flag."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wbc.differential import differential_of, told_alone, wilson
from wbc.taxonomy import Taxonomy, load_taxonomy, shipped_taxonomies
from wbc.types import Differential, DifferentialRow

TAXONOMIES = {name: load_taxonomy(name) for name in shipped_taxonomies()}
BLOOD, MARROW = TAXONOMIES["blood"], TAXONOMIES["marrow_icsh"]


def row(differential: Differential, cell_type: str) -> DifferentialRow:
    return next(r for r in differential.rows if r.cell_type == cell_type)


@st.composite
def slides(draw: st.DrawFn) -> tuple[str, dict[str, int]]:
    """A taxonomy's name and counts of some of its types, coarse ones included."""
    name = draw(st.sampled_from(sorted(TAXONOMIES)))
    types = [t.name for t in TAXONOMIES[name].cell_types]
    return name, draw(st.dictionaries(st.sampled_from(types), st.integers(0, 2000)))


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(1, 100, 0.0, 5.4), (20, 200, 6.2, 15.0), (25, 500, 3.3, 7.3), (0, 500, 0.0, 0.7)]
)
def test_limits_are_those_of_ruemkes_table(hits: int, n: int, low: float, high: float) -> None:
    found = row(differential_of({"basophil": hits, "lymphocyte": n - hits}, BLOOD), "basophil")
    assert found.percent == pytest.approx(100 * hits / n)
    assert found.ci_low is not None
    assert found.ci_high is not None
    assert (round(found.ci_low, 1), round(found.ci_high, 1)) == (low, high)


@pytest.mark.parametrize("taxonomy", TAXONOMIES.values(), ids=TAXONOMIES.keys())
def test_what_is_no_white_cell_is_counted_and_in_no_percentage(taxonomy: Taxonomy) -> None:
    white = next(t.name for t in taxonomy.cell_types if t.in_differential)
    found, without = (differential_of({white: 20} | others, taxonomy) for others in ({"not_a_white_cell": 5}, {}))
    assert row(found, "not_a_white_cell") == DifferentialRow("not_a_white_cell", "other", 5, False, None, None, None)
    assert (found.n_cells, found.n_differential) == (25, 20)
    assert (row(found, white), found.flags) == (row(without, white), without.flags)
    assert "no_cells" in differential_of({"not_a_white_cell": 5}, taxonomy).flags


def test_all_of_one_kind_reaches_a_hundred_exactly() -> None:
    found = row(differential_of(["lymphocyte"] * 30, BLOOD), "lymphocyte")
    assert (found.percent, found.ci_high) == (100, 100)
    none = row(differential_of(["lymphocyte"] * 30, BLOOD), "monocyte")
    assert (none.percent, none.ci_low) == (0, 0)


def test_a_blood_slide() -> None:
    cells = ["segmented_neutrophil"] * 110 + ["band_neutrophil"] * 6 + ["neutrophil"] * 4 + ["lymphocyte"] * 60
    cells += ["monocyte"] * 14 + ["wbc"] * 6 + ["erythroblast"] * 5 + ["rbc"] * 900 + ["platelet"] * 40
    found = differential_of(cells, BLOOD)
    assert (found.taxonomy, found.n_cells, found.n_differential, found.n_unidentified) == ("blood", 1145, 200, 6)
    assert [r.cell_type for r in found.rows] == [t.name for t in BLOOD.cell_types]
    assert (row(found, "neutrophil").count, row(found, "neutrophil").percent) == (120, 60)
    assert row(found, "segmented_neutrophil").percent == 55
    assert row(found, "unidentified").percent == 3
    assert row(found, "rbc") == DifferentialRow("rbc", "erythroid", 900, False, None, None, None)
    assert row(found, "erythroblast") == DifferentialRow("erythroblast", "erythroid", 5, False, None, None, None)
    assert found.nrbc_per_100_wbc == 2.5
    assert (found.me_ratio, found.me_low, found.me_high) == (None, None, None)
    assert found.flags == ("below_500", "below_300", "nrbc_present")


def test_one_name_a_cell_and_counts_by_name_say_the_same() -> None:
    cells = ["lymphocyte", "rbc", "lymphocyte", "band_neutrophil"]
    assert differential_of(cells, BLOOD) == differential_of(
        {"band_neutrophil": 1, "rbc": 1, "lymphocyte": 2, "basophil": 0}, BLOOD
    )


def test_foreign_names_of_one_type_are_counted_together() -> None:
    found = differential_of({"eosinophil": 3, "segmented_neutrophil": 4, "granulocyte": 1}, TAXONOMIES["wang2021"])
    assert row(found, "granulocyte").count == 8


def test_a_marrow_slide_has_an_me_ratio() -> None:
    cells = {"myeloblast": 10, "promyelocyte": 20, "neutrophil": 250, "eosinophil": 10, "monocyte": 10}
    cells |= {"polychromatic_erythroblast": 90, "erythroblast": 10, "lymphocyte": 80, "plasma_cell": 10, "blast": 5}
    found = differential_of(cells | {"megakaryocyte": 7, "mast_cell": 5}, MARROW)
    assert found.n_differential == 500
    assert found.me_ratio == 3
    # Wilson's limits of 300 of 400 are 0.705323 and 0.789921 (scipy's binomtest).
    assert found.me_low == pytest.approx(0.705323 / 0.294677, rel=1e-5)
    assert found.me_high == pytest.approx(0.789921 / 0.210079, rel=1e-5)
    assert row(found, "blast").count == 15
    assert row(found, "megakaryocyte").percent is None
    assert found.nrbc_per_100_wbc is None


@pytest.mark.parametrize(("hits", "low", "high"), [(0, 0.0, 0.2775), (5, 0.2366, 0.7634), (10, 0.7225, 1.0)])
def test_wilson_limits_of_ten(hits: int, low: float, high: float) -> None:
    assert wilson(hits, 10) == pytest.approx((low, high), abs=5e-5)
    assert all(0 <= limit <= 1 for limit in wilson(hits, 10))


def test_me_without_erythroblasts_has_a_lower_limit_alone() -> None:
    found = differential_of({"myelocyte": 10}, MARROW)
    assert (found.me_ratio, found.me_high) == (None, math.inf)
    assert found.me_low == pytest.approx(0.7225 / 0.2775, rel=1e-3)
    assert "me_undefined" in found.flags


def test_me_without_myeloid_cells_is_nought() -> None:
    found = differential_of({"erythroblast": 10}, MARROW)
    assert (found.me_ratio, found.me_low) == (0, 0)
    assert found.me_high == pytest.approx(0.2775 / 0.7225, rel=1e-3)
    assert "me_undefined" not in found.flags


def test_me_with_neither_is_undefined() -> None:
    found = differential_of({"lymphocyte": 600, "unidentified": 10}, MARROW)
    assert (found.me_ratio, found.me_low, found.me_high) == (None, None, None)
    assert found.flags == ("me_undefined",)


@pytest.mark.parametrize(
    ("n", "flags"),
    [
        (500, ()),
        (499, ("below_500",)),
        (300, ("below_500",)),
        (299, ("below_500", "below_300")),
        (200, ("below_500", "below_300")),
        (199, ("below_500", "below_300", "below_200")),
    ],
)
def test_a_short_count_has_every_flag_that_holds(n: int, flags: tuple[str, ...]) -> None:
    assert differential_of({"lymphocyte": n, "rbc": 1000}, BLOOD).flags == flags


@pytest.mark.parametrize(
    ("cells", "flags"),
    [
        ({"myeloblast": 25, "erythroblast": 475}, ["straddles:blast:5"]),
        ({"myeloblast": 60, "lymphoblast": 40, "erythroblast": 400}, ["straddles:blast:20"]),
        ({"plasma_cell": 45, "erythroblast": 455}, ["straddles:plasma_cell:10"]),
        ({"myeloblast": 60, "erythroblast": 440}, []),
        # None seen, and so few looked at that 5 % cannot be ruled out.
        ({"erythroblast": 60}, ["straddles:blast:5"]),
    ],
)
def test_limits_on_both_sides_of_a_decision_are_flagged(cells: dict[str, int], flags: list[str]) -> None:
    assert [f for f in differential_of(cells, MARROW).flags if f.startswith("straddles")] == flags


TOLD = ("blast", "band_neutrophil", "eosinophil", "lymphocyte", "erythroblast")


def test_nothing_is_said_of_types_that_no_cell_could_be_called() -> None:
    cells = {"band_neutrophil": 60, "lymphocyte": 20, "erythroblast": 10, "wbc": 10, "macrophage": 2, "rbc": 5}
    whole = differential_of(cells, MARROW)
    found = told_alone(whole, TOLD, MARROW)
    assert row(found, "plasma_cell") == DifferentialRow("plasma_cell", "plasma", None, True, None, None, None)
    assert row(found, "osteoclast").count is None
    same = ("blast", "neutrophil", "band_neutrophil", "eosinophil", "erythroblast", "unidentified", "macrophage")
    assert [row(found, name) for name in (*same, "rbc", "platelet")] == [
        row(whole, name) for name in (*same, "rbc", "platelet")
    ]
    assert row(found, "segmented_neutrophil").count is None  # what is below a name is not told by it
    assert (found.me_ratio, found.me_low, found.me_high) == (whole.me_ratio, whole.me_low, whole.me_high)
    assert "straddles:plasma_cell:10" not in found.flags
    assert found.flags == (*whole.flags, "types_not_told")


def test_thresholds_of_types_that_are_not_told_are_straddled_by_nothing() -> None:
    whole = differential_of({"lymphocyte": 20, "wbc": 1}, MARROW)
    assert {"straddles:plasma_cell:10", "straddles:blast:5"} <= set(whole.flags)
    assert [flag for flag in told_alone(whole, TOLD, MARROW).flags if "straddles" in flag] == [
        flag for flag in whole.flags if "blast" in flag
    ]


def test_without_names_for_a_side_there_is_no_ratio() -> None:
    whole = differential_of({"neutrophil": 60, "lymphocyte": 20}, MARROW)
    assert whole.me_low is not None
    found = told_alone(whole, ("neutrophil", "eosinophil"), MARROW)
    assert (found.me_ratio, found.me_low, found.me_high) == (None, None, None)
    assert found.flags.count("me_undefined") == 1
    blood = differential_of({"neutrophil": 60, "lymphocyte": 20}, BLOOD)
    assert blood.nrbc_per_100_wbc == 0
    assert told_alone(blood, ("neutrophil",), BLOOD).nrbc_per_100_wbc is None
    assert told_alone(blood, ("neutrophil", "erythroblast"), BLOOD).nrbc_per_100_wbc == 0


def test_where_every_type_is_told_nothing_changes() -> None:
    whole = differential_of({"neutrophil": 60}, BLOOD)
    assert told_alone(whole, [t.name for t in BLOOD.cell_types], BLOOD) == whole


def test_unidentified_cells_are_flagged_over_a_tenth_of_the_denominator() -> None:
    assert differential_of({"lymphocyte": 540, "wbc": 60}, BLOOD).flags == ()
    assert differential_of({"lymphocyte": 539, "wbc": 61}, BLOOD).flags == ("unidentified_over_10_percent",)


def test_failed_fields_are_flagged() -> None:
    assert differential_of({"lymphocyte": 500}, BLOOD, n_fields_failed=1).flags == ("fields_failed",)


@pytest.mark.parametrize("name", sorted(TAXONOMIES))
@pytest.mark.parametrize("cells", [{}, {"rbc": 500, "platelet": 20}])
def test_a_slide_without_nucleated_cells_says_so_and_divides_by_nothing(name: str, cells: dict[str, int]) -> None:
    found = differential_of(cells, TAXONOMIES[name])
    assert "no_cells" in found.flags
    assert (found.n_cells, found.n_differential) == (sum(cells.values()), 0)
    assert {(r.percent, r.ci_low, r.ci_high) for r in found.rows} == {(None, None, None)}
    assert (found.me_ratio, found.nrbc_per_100_wbc) == (None, None)


def test_only_erythroblasts_in_blood_are_cells_without_a_white_one() -> None:
    found = differential_of({"erythroblast": 3}, BLOOD)
    assert found.nrbc_per_100_wbc is None
    assert "nrbc_present" in found.flags
    assert "no_cells" not in found.flags


def test_impossible_input_is_refused() -> None:
    with pytest.raises(ValueError, match="blood does not know 'plasma_cell'"):
        differential_of(["plasma_cell"], BLOOD)
    with pytest.raises(ValueError, match="-1 cells of lymphocyte"):
        differential_of({"lymphocyte": -1}, BLOOD)
    with pytest.raises(ValueError, match="n_fields_failed is -2"):
        differential_of([], BLOOD, n_fields_failed=-2)
    with pytest.raises(ValueError, match="'lymphocyte', not one type a cell"):
        differential_of("lymphocyte", BLOOD)


@given(slides())
def test_counts_sum_and_parents_hold_their_children(slide: tuple[str, dict[str, int]]) -> None:
    name, cells = slide
    taxonomy, found = TAXONOMIES[name], differential_of(cells, TAXONOMIES[name])
    assert found.n_cells == sum(cells.values())
    roots = [t.name for t in taxonomy.cell_types if t.parent is None]
    assert sum(row(found, root).count for root in roots) == found.n_cells
    for r in found.rows:
        below = sum(row(found, child).count for child in taxonomy.children(r.cell_type))
        assert r.count == cells.get(r.cell_type, 0) + below


@given(slides())
def test_percentages_sum_to_a_hundred_or_are_null(slide: tuple[str, dict[str, int]]) -> None:
    name, cells = slide
    taxonomy, found = TAXONOMIES[name], differential_of(cells, TAXONOMIES[name])
    inside = [r for r in found.rows if r.in_differential]
    if found.n_differential == 0:
        assert all(r.percent is None for r in found.rows)
        return
    leaves = sum(r.percent or 0 for r in inside if not taxonomy.children(r.cell_type))
    coarse = sum(cells.get(r.cell_type, 0) for r in inside if taxonomy.children(r.cell_type))
    assert leaves + 100 * coarse / found.n_differential == pytest.approx(100)
    assert all(r.percent is None for r in found.rows if not r.in_differential)


@given(slides())
def test_limits_hold_what_they_limit(slide: tuple[str, dict[str, int]]) -> None:
    name, cells = slide
    found = differential_of(cells, TAXONOMIES[name])
    for r in found.rows:
        if r.percent is not None:
            assert r.ci_low is not None
            assert r.ci_high is not None
            assert 0 <= r.ci_low <= r.percent <= r.ci_high <= 100
    if found.me_ratio is not None:
        assert found.me_low is not None
        assert found.me_high is not None
        assert found.me_low <= found.me_ratio <= found.me_high < math.inf
