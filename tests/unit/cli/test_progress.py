"""What a count says while it runs: a line a slide in a log, a bar at a terminal."""

import io

from rich.console import Console

from wbc.cli.progress import LogLines, ProgressBar
from wbc.counting.slide import SlideOutcome
from wbc.storage.tables import FailedField

OUTCOMES = (
    SlideOutcome("s1", "counted", 4, 40, (FailedField("f.jpg", "is empty"),), 2.5),
    SlideOutcome("s2", "unchanged", 3, 30, (), 0.0),
    SlideOutcome("s3", "failed", 2, 0, (), 0.1, "worker\ndied"),
)


def test_a_log_has_one_line_a_slide() -> None:
    sink = io.StringIO()
    lines = LogLines(Console(file=sink, width=40))
    lines.slides_found(3, 9)
    for outcome in OUTCOMES:
        lines.fields_done(3, 40)
        lines.slide_done(outcome)
    told = sink.getvalue().splitlines()
    assert len(told) == 4
    assert told[0].endswith("3 slides with 9 fields")
    assert told[1].endswith("s1: counted: 4 fields, 40 cells, 2.5 s, 1 failed")
    assert "s2: unchanged: 3 fields, 30 cells" in told[2]
    assert told[3].endswith(r"s3: failed: worker\ndied")


def test_a_bar_counts_slides_fields_and_cells_a_second() -> None:
    sink = io.StringIO()
    with ProgressBar(Console(file=sink, force_terminal=True, width=120, color_system=None)) as bar:
        bar.slides_found(3, 9)
        bar.fields_done(3, 40)
        for outcome in OUTCOMES[:2]:
            bar.slide_done(outcome)
    last = sink.getvalue().split("\x1b[2K")[-1]
    assert "2/3" in last
    assert "7/9" in last, "a field that failed, and those of an unchanged slide, are done"
    assert "cells/s" in last
