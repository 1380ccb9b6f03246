"""Which slides the table of a run's page shows."""

from dataclasses import replace

from flows.slide_table import MOST_LINES, most_telling
from wbc.counting.handover import SlideOutcome
from wbc.storage.tables import FailedField

COUNTED = [SlideOutcome(f"slide-{i:05d}", "counted", 2, 700, (), 1.0) for i in range(MOST_LINES + 100)]


def test_all_slides_are_shown_in_their_order_where_there_is_room() -> None:
    outcomes = [*COUNTED[: MOST_LINES - 1], replace(COUNTED[MOST_LINES], status="failed", reason="no picture")]
    assert most_telling(outcomes) == list(enumerate(outcomes))


def test_of_more_those_are_shown_first_of_which_something_failed() -> None:
    outcomes = list(COUNTED)
    outcomes[-50] = replace(outcomes[-50], status="failed", reason="no field could be counted")
    outcomes[-1] = replace(outcomes[-1], failed_fields=(FailedField("a.jpg", "truncated"),))
    last = len(outcomes) - 1
    shown = most_telling(outcomes)
    assert shown[:2] == [(last - 49, outcomes[-50]), (last, outcomes[-1])]
    assert shown[2:] == list(enumerate(outcomes))[: MOST_LINES - 2]
