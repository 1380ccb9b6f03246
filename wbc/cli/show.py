"""`wbc show`: what was counted, printed again."""

from collections.abc import Sequence
from typing import Annotated

import typer

from wbc.cli.options import AsJson
from wbc.cli.terminal import print_json, print_missing, print_tables, usage_errors

MOST_NAMED = 10


def show(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    slide: Annotated[str | None, typer.Argument(help="The slide_id of one slide; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the differentials in OUT again."""
    with usage_errors():
        from upath import UPath

        from wbc.counting.report import read_reports, report_json
        from wbc.storage.layout import Layout

        counted = Layout(UPath(out)).slide_ids()
        if not counted:
            raise ValueError(f"{out}: no slide was counted here")
        if slide is not None and slide not in counted:
            raise ValueError(f"{out}: no count of slide {slide!r}; there are {_first(counted)}")
        reports, broken = read_reports(UPath(out), [slide] if slide else counted)
    if as_json:
        print_json(out, [report_json(report) for report in reports.values()])
    else:
        print_tables(list(reports.values()))
    print_missing(f"{slide_id}: {reason}" for slide_id, reason in broken.items())


def _first(names: Sequence[str]) -> str:
    """The first ten of some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
