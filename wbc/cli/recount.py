"""`wbc recount`: counts for another score or taxonomy, from what the models said then."""

from typing import Annotated

import typer

from wbc.cli.options import AsJson
from wbc.cli.show import counted_slides
from wbc.cli.terminal import print_count, usage_errors


def recount(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    slides: Annotated[list[str] | None, typer.Argument(help="The slide_id of each slide; default: all.")] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Leave out cells that the detector is less sure of; default: as it was."),
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(help="blood, marrow_icsh, wang2021, asae2020, or your own TOML file; default: as it was."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Count slides in OUT again for another score or taxonomy; opens no picture and runs no model.

    The next `wbc count` counts by its own score and taxonomy again.
    """
    with usage_errors():
        from upath import UPath

        from wbc.counting.recount import Change, recount_slides
        from wbc.counting.remarks import CountReport
        from wbc.taxonomy import load_taxonomy

        wanted = counted_slides(out, slides or ())
        change = Change(None if taxonomy is None else load_taxonomy(taxonomy), min_score)
        report = CountReport(tuple(recount_slides(UPath(out), wanted, change)))
    print_count(report, out, as_json)
