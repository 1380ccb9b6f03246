"""`wbc recount`: counts for another score or taxonomy, or corrected by people, from what the models said then."""

from pathlib import Path
from typing import Annotated

import typer

from wbc.cli.options import AsJson
from wbc.cli.show import counted_slides
from wbc.cli.terminal import login, print_count, usage_errors


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
    corrections: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="What a person says of the cells: a CSV or Parquet with slide_id, field, cell_id, cell_type, or an "
            "export of the count that was corrected, in any format that is read.",
        ),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who made the corrections; default: your login.")] = None,
    without_corrections: Annotated[
        bool, typer.Option("--without-corrections", help="Forget what people said of the cells of these slides.")
    ] = False,
    format: Annotated[str, typer.Option("--format", help="The format of corrections; default: as they look.")] = "",
    attribute: Annotated[str, typer.Option(help="VIA's region attribute that names a cell.")] = "",
    as_json: AsJson = False,
) -> None:
    """Count slides in OUT again for another score or taxonomy, or by corrections; opens no picture and runs no model.

    Corrections stand from then on, whatever counts the slide; the next `wbc count` counts by its own score and taxonomy
    again.
    """
    with usage_errors():
        from upath import UPath

        from wbc.counting.corrections_file import CorrectionsFile
        from wbc.counting.recount import Change, recount_slides
        from wbc.counting.remarks import CountReport
        from wbc.taxonomy import load_taxonomy

        wanted = counted_slides(out, slides or ())
        file = None if corrections is None else CorrectionsFile(corrections, by or login(), format, attribute)
        change = Change(None if taxonomy is None else load_taxonomy(taxonomy), min_score, file, without_corrections)
        report = CountReport(tuple(recount_slides(UPath(out), wanted, change)))
    print_count(report, out, as_json)
