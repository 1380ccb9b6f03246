"""`wbc show`: what was counted, printed again."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from wbc.cli.options import AsJson
from wbc.cli.terminal import print_json, print_missing, print_remarks, print_tables, usage_errors

MOST_NAMED = 10


def show(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    slide: Annotated[str | None, typer.Argument(help="The slide_id of one slide; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the differentials in OUT again, and name slides that are not there any more."""
    with usage_errors():
        from upath import UPath

        from wbc.counting.remarks import gone_lines
        from wbc.counting.report import read_reports, report_json
        from wbc.storage.gone import gone_slides
        from wbc.storage.layout import Layout

        shown = counted_slides(out, [] if slide is None else [slide])
        reports, broken = read_reports(UPath(out), shown)
        others = set(Layout(UPath(out)).slide_ids()) - set(shown)
        gone = [g for g in gone_slides(UPath(out), others) if g.source is not None]
    if as_json:
        print_json(out, [report_json(report) for report in reports.values()], gone=[asdict(g) for g in gone])
    else:
        print_tables(list(reports.values()))
    print_remarks(gone_lines(gone))
    print_missing(f"{slide_id}: {reason}" for slide_id, reason in broken.items())


def counted_slides(out: str, wanted: Sequence[str]) -> Sequence[str]:
    """The slides in OUT that are wanted; all where none is named. Raises ValueError where there is no such slide."""
    from upath import UPath

    from wbc.storage.layout import Layout

    counted = Layout(UPath(out)).slide_ids()
    if not counted:
        raise ValueError(f"{out}: no slide was counted here")
    for slide in wanted:
        if slide not in counted:
            raise ValueError(f"{out}: no count of slide {slide!r}; there are {_first(counted)}")
    return wanted or counted


def _first(names: Sequence[str]) -> str:
    """The first ten of some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
