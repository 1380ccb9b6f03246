"""`wbc models`: the bundled models, and the card of any model."""

import json
from typing import Annotated, Any

import typer

from wbc.cli.options import AsJson
from wbc.cli.rows import print_rows
from wbc.cli.terminal import usage_errors

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the bundled models."""
    with usage_errors():
        from wbc.models.registry import bundled_models

        models = {reference: _facts(reference) for reference in bundled_models()}
    if as_json:
        typer.echo(json.dumps(models, indent=1, ensure_ascii=False))
        return
    columns = ("name", "version", "task", "digest")
    print_rows(("reference", *columns), [(r, *(str(facts[key]) for key in columns)) for r, facts in models.items()])


@app.command("show")
def show_model(
    reference: Annotated[str, typer.Argument(help="bundled:NAME, a model's folder, or models:/NAME@ALIAS.")],
    as_json: AsJson = False,
) -> None:
    """Print a model's card: its classes, its scale, the data it was trained on, and how well it did then."""
    with usage_errors():
        facts = _facts(reference)
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_rows(("", ""), [(key, _text(value)) for key, value in facts.items()])


def _facts(reference: str) -> dict[str, Any]:
    """A model's card, and the one digest of card and weights that a count names it by."""
    from wbc.models.registry import read_card

    card = read_card(reference)
    return {**card.to_json(), "digest": card.digest[:12]}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_text(part)}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
