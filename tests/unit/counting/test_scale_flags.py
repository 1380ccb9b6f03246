"""Which flags follow from the scales of a slide's fields, and from how large red cells are at them."""

from collections.abc import Mapping, Sequence

import pytest

from wbc.counting.handover import Scale
from wbc.counting.scales import scale_flags
from wbc.types import WHOLE_RED_CELL_UM


def flags(um_per_px: Sequence[float | None], red_cells: Mapping[int, float] = {}) -> tuple[str, ...]:
    return scale_flags({i: Scale(scale, "given") for i, scale in enumerate(um_per_px)}, red_cells)


def test_fields_of_about_one_scale_have_no_flag() -> None:
    assert flags([0.2, 0.21]) == ()
    assert flags([]) == ()


def test_a_field_without_a_scale_and_scales_that_differ_are_flagged() -> None:
    assert flags([0.2, None]) == ("scale_unknown",)
    assert flags([0.2, 0.23]) == ("mixed_scale",)


@pytest.mark.parametrize(("size", "is_doubtful"), [(6.0, True), (6.1, False), (7.6, False), (9.4, False), (9.5, True)])
def test_red_cells_of_a_size_that_no_red_cells_have_make_the_scale_doubtful(size: float, is_doubtful: bool) -> None:
    assert ("scale_doubtful" in flags([0.2, 0.2], {1: size})) == is_doubtful


def test_one_odd_field_of_many_is_no_doubt_and_fields_of_another_objective_are() -> None:
    wrong, right = WHOLE_RED_CELL_UM / 2, WHOLE_RED_CELL_UM
    assert flags([0.2] * 10, {0: wrong} | dict.fromkeys(range(1, 10), right)) == ()
    assert flags([0.2] * 10, {0: wrong, 1: wrong} | dict.fromkeys(range(2, 10), right)) == ("scale_doubtful",)
    many = dict.fromkeys(range(20), right)
    assert flags([0.2] * 20 + [0.21], many | {20: wrong}) == ("scale_doubtful",)


def test_a_field_without_a_scale_is_not_doubted_beside() -> None:
    assert flags([None], {0: WHOLE_RED_CELL_UM * 3}) == ("scale_unknown",)
