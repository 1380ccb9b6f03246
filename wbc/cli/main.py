"""The `wbc` command, put together. Each verb is one call into the library or a flow."""

from typing import Annotated

import typer

from wbc import __version__
from wbc.cli import annotations, config, models, train
from wbc.cli.about import doctor, version
from wbc.cli.adapt import adapt
from wbc.cli.count import count
from wbc.cli.evaluate import evaluate
from wbc.cli.options import CountCommand
from wbc.cli.prune import prune
from wbc.cli.recount import recount
from wbc.cli.show import show
from wbc.cli.synth import synth


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _wbc(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Differential counts of white blood cells from folders of microscope fields."""


app.command(cls=CountCommand)(count)
app.command()(recount)
app.command()(show)
app.command()(prune)
app.command()(adapt)
app.command()(evaluate)
app.command()(synth)
app.command()(version)
app.command()(doctor)
app.add_typer(train.app, name="train", help="Train a model from a config; an interrupted training carries on.")
app.add_typer(annotations.app, name="annotations", help="Check, convert, export, add what people marked.")
app.add_typer(config.app, name="config", help="Show the parameters of a count, and where each comes from.")
app.add_typer(
    models.app, name="models", help="Models: bundled ones, versions in the registry, and which of them counts."
)
