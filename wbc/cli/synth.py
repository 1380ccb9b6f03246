"""`wbc synth`: rendered smears, whose truth is known."""

from pathlib import Path
from typing import Annotated

import typer

from wbc.cli.terminal import usage_errors
from wbc.configs import read_toml


def synth(
    out: Annotated[Path, typer.Argument(file_okay=False, help="Folder to render into.")],
    slides: Annotated[int, typer.Option(min=1, help="How many slides.")] = 2,
    fields: Annotated[int, typer.Option(min=1, help="How many fields a slide.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pictures, byte for byte.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file that says what a field holds: its size and scale, how many cells, of what types."),
    ] = None,
) -> None:
    """Render smears with exact truth beside them (COCO JSON): something to count without a microscope."""
    with usage_errors():
        from wbc.cli.tables import counted
        from wbc.synth.smear import SmearSettings, render_slides

        settings = SmearSettings() if config is None else read_toml(config, SmearSettings)
        truth = render_slides(out, slides, fields, seed, settings)
    typer.echo(f"{counted(slides, 'slide')} of {counted(fields, 'field')} in {out}; the truth is in {truth}")
