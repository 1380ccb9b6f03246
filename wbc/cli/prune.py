"""`wbc prune`: counts of slides that are not there any more go to the history."""

from typing import Annotated

import typer

from wbc.cli.options import AsJson
from wbc.cli.terminal import usage_errors


def prune(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    slide: Annotated[
        list[str] | None, typer.Argument(help="Slides, by slide_id, that are to go, whether they are there or not.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Move the counts of slides that are not there any more to OUT/history. Drawings and kept pixels stay."""
    import json
    from dataclasses import asdict

    with usage_errors():
        from upath import UPath

        from wbc.counting.job import new_run_id
        from wbc.counting.report import printable
        from wbc.storage.counts import retire
        from wbc.storage.gone import slides_to_prune
        from wbc.storage.layout import Layout
        from wbc.storage.lock import holding

        if not Layout(UPath(out)).slide_ids():
            raise ValueError(f"{out}: no slide was counted here")
        with holding(UPath(out), new_run_id()) as hold:
            pruned = slides_to_prune(UPath(out), slide or ())
            for gone in pruned:
                hold.check()
                retire(UPath(out), gone.slide_id)
    if as_json:
        typer.echo(json.dumps({"out": out, "pruned": [asdict(gone) for gone in pruned]}, indent=1, ensure_ascii=False))
        return
    for gone in pruned:
        typer.echo(printable(f"{gone.slide_id} ({gone.source or 'no address'}): its count is in the history now"))
    if not pruned:
        typer.echo("every slide is where it was counted: nothing is moved")
