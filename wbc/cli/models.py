"""`wbc models`: the bundled models and those in the registry, which of them counts, and how that is changed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from wbc.cli.options import AsJson, Device
from wbc.cli.rows import print_rows
from wbc.cli.terminal import usage_errors

app = typer.Typer(no_args_is_help=True)
Reference = Annotated[str, typer.Argument(help="bundled:NAME, a model's folder, models:/NAME@ALIAS or models:/NAME/N.")]
Name = Annotated[str, typer.Argument(help="wbc-detector or wbc-classifier.")]


@app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="List the registry's versions of this name instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the bundled models, or the versions of wbc-detector or wbc-classifier in the registry, the newest first."""
    with usage_errors():
        rows = _bundled() if name is None else _versions(name)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    columns = ("name", "version", "task", "digest") if name is None else ("aliases", "created", "figures", "decision")
    print_rows(("reference", *columns), [(r, *(str(facts[key]) for key in columns)) for r, facts in rows.items()])


def _bundled() -> dict[str, dict[str, Any]]:
    from wbc.models.registry import bundled_models

    return {reference: _facts(reference) for reference in bundled_models()}


def _versions(name: str) -> dict[str, dict[str, Any]]:
    from wbc.models.versions import decision_of, versions

    rows = {}
    for version in versions(name):
        decision = decision_of(version)
        word = "" if not decision else "promoted" if decision["promoted"] else "not promoted"
        figures = {key: round(value, 4) for key, value in version.metrics.items() if not key.startswith("gate ")}
        rows[version.reference] = {
            "aliases": ", ".join(version.aliases),
            "created": version.created_at.isoformat(timespec="seconds"),
            "figures": _text(dict(list(figures.items())[:4])),
            "decision": word,
            "metrics": dict(version.metrics),
            "tags": dict(version.tags),
        }
    return rows


@app.command("show")
def show_model(reference: Reference, as_json: AsJson = False) -> None:
    """Print a model's card: its classes, its scale, the data it was trained on, and how well it did then.

    Of a version also what the registry knows: its aliases, its figures, what it has learnt from, the gate's decision.
    """
    with usage_errors():
        facts = _facts(reference)
        if reference.startswith("models:/"):
            from wbc.models.versions import decision_of, version_of

            version = version_of(reference)
            told = {key: value for key, value in version.tags.items() if key != "decision"}
            facts |= {
                "reference": version.reference,
                "aliases": list(version.aliases),
                "figures": dict(version.metrics),
            }
            facts |= {"version tags": told, "gate": decision_of(version)}
    if as_json:
        typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        print_rows(("", ""), [(key, _text(value)) for key, value in facts.items()])


@app.command("compare")
def compare(
    champion: Annotated[str, typer.Argument(help="A model's reference.")],
    challenger: Annotated[str, typer.Argument(help="The reference of one that may be better.")],
    frozen: Annotated[Path, typer.Option(exists=True, help="Frozen labelled slides: a TOML file, or annotations.")],
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder with what FROZEN names.")] = Path(),
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Judge two models by the gate's rule on the same frozen slides, and change nothing."""
    with usage_errors():
        from wbc.evaluation.frozen import read_frozen
        from wbc.evaluation.gate import judge
        from wbc.models.registry import resolve_device

        decision = judge(champion, challenger, read_frozen(frozen, data), resolve_device(device))
    if as_json:
        typer.echo(json.dumps(decision.to_json(), indent=1))
        return
    _print_lines(decision.lines())
    verdict = "would be promoted" if decision.promoted else f"would not be promoted: {'; '.join(decision.reasons)}"
    limits = f"{decision.gain:+.4f} ({decision.gain_low:+.4f} to {decision.gain_high:+.4f})"
    typer.echo(f"{challenger} {verdict}\n{decision.main} {limits}")


def _print_lines(lines: list[dict[str, str]]) -> None:
    print_rows(tuple(lines[0]), [tuple(line.values()) for line in lines])


@app.command("promote")
def promote(
    reference: Annotated[str, typer.Argument(help="models:/NAME/NUMBER or models:/NAME@challenger.")],
    frozen: Annotated[
        Path | None, typer.Option(exists=True, help="Frozen labelled slides: a TOML file, or annotations.")
    ] = None,
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder with what FROZEN names.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Without asking the gate.")] = False,
    device: Device = "auto",
) -> None:
    """Make a version the champion if the gate lets it through on frozen slides; exit status 1 where it does not."""
    with usage_errors():
        if force == (frozen is not None):
            raise ValueError("say either --frozen, which the gate judges on, or --force")
        if frozen is None:
            from wbc.models.versions import promote as make_champion

            typer.echo(f"{make_champion(reference).reference} is the champion now, unjudged")
            return
        from wbc.evaluation.frozen import read_frozen
        from wbc.evaluation.promotion import decide
        from wbc.models.registry import resolve_device

        decision = decide(reference, read_frozen(frozen, data), resolve_device(device))
    _print_lines(decision.lines())
    typer.echo(decision.headline())
    if not decision.promoted:
        raise typer.Exit(1)


@app.command("rollback")
def rollback(name: Name) -> None:
    """Make the champion before this one the champion again."""
    with usage_errors():
        from wbc.models.versions import rollback as go_back

        typer.echo(f"{go_back(name).reference} is the champion now")


@app.command("import")
def import_model(reference: Reference) -> None:
    """Make a model of a folder, or a bundled one, a version in the registry; one that is there already stays one."""
    with usage_errors():
        from wbc.models.registry import read_card
        from wbc.models.versions import NAMES
        from wbc.models.versions import import_model as make_version

        typer.echo(f"models:/{NAMES[read_card(reference).task]}/{make_version(reference)}")


@app.command("export")
def export(reference: Reference, out: Annotated[Path, typer.Argument(help="The folder to make.")]) -> None:
    """Copy a model to a folder of its own: its card, its weights, its reference cells."""
    with usage_errors():
        from wbc.models.versions import export_version

        card = export_version(reference, out)
    typer.echo(f"{card.name} {card.version} in {out}")


def _facts(reference: str) -> dict[str, Any]:
    """A model's card, and the one digest of card and weights that a count names it by."""
    from wbc.models.registry import read_card

    card = read_card(reference)
    return {**card.to_json(), "digest": card.digest[:12]}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_text(part)}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
