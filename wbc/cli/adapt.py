"""`wbc adapt`: a laboratory names some of its cells, and has a classifier that knows its stain."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wbc.cli.options import AsJson, Device
from wbc.cli.rows import print_rows
from wbc.cli.terminal import login, print_remarks, usage_errors
from wbc.cli.train import training_progress

if TYPE_CHECKING:
    from wbc.training.body import Trial
    from wbc.training.teaching import Proposal, Taught


UNNAMED = "the model will say so less often than before. If the laboratory has such cells, name some of them, too"
UNTOLD = (
    "not all of these cells are from a table that wbc adapt wrote, with few lines left empty, and nothing tells by "
    "what the others were chosen: how often the model misnames cells is taken from laboratories that {parent} had not "
    "seen"
)
FORGETS = "this laboratory alone taught it, and it may name other laboratories' cells worse: count theirs with {parent}"


def adapt(
    out: Annotated[str, typer.Argument(help="Where a count wrote its tables.")],
    model: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder of the cells to name, and of the model made of them.")
    ],
    names: Annotated[
        list[Path] | None,
        typer.Option(
            "--names",
            exists=True,
            dir_okay=False,
            help="CSV or Parquet with slide_id, field, cell_id, cell_type: teach these; may be given several times.",
        ),
    ] = None,
    per_kind: Annotated[int, typer.Option(min=1, max=100, help="How many cells of each type to propose.")] = 10,
    classifier: Annotated[
        str | None, typer.Option(help="The classifier that is taught; default: the one that counted.")
    ] = None,
    taxonomy: Annotated[str | None, typer.Option(help="What the names mean; default: the count's taxonomy.")] = None,
    by: Annotated[str | None, typer.Option(help="Who named the cells; default: your login.")] = None,
    replay: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Training config of what the classifier has learnt from: with 200 names its body learns, too.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder with the data sets that --replay names.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Teach a classifier a laboratory's stain by a few of its own cells.

    Without --names it picks the cells of OUT that are most worth naming, and writes a contact sheet and a table to fill
    in. With --names it makes a model of them, and of others that nobody named, and says what that gains. With --replay
    and --data, and names of 200 cells and more, the body of the classifier learns on from them and its old data, which
    takes minutes; it is taken where cells held out gain more by that than by a new last layer, and what was learnt
    before is kept.
    """
    with usage_errors():
        from upath import UPath

        from wbc.models.registry import resolve_device
        from wbc.training.body import Replay
        from wbc.training.teaching import Lesson, propose, teach

        if (replay is None) != (data is None):
            raise ValueError("--replay names the data sets and --data the folder that they are in: give both")
        old = Replay(replay, data) if replay is not None and data is not None else None
        lesson = Lesson(UPath(out), classifier, taxonomy, resolve_device(device), old)
        if not names:
            _print_proposal(propose(lesson, model, per_kind), out, model, as_json)
        else:
            with training_progress():
                taught = teach(lesson, names, model, by or login())
            _print_taught(taught, model, as_json, is_replayed=old is not None)


def _print_proposal(proposal: "Proposal", out: str, model: Path, as_json: bool) -> None:
    if as_json:
        facts = {"table": str(proposal.table), "sheet": str(proposal.sheet), "kinds": proposal.kinds}
        _print_json(facts | {"passed_over": proposal.passed_over})
        return
    print_rows(("counted as", "cells"), [(kind, str(n)) for kind, n in proposal.kinds.items()])
    typer.echo(f"{sum(proposal.kinds.values())} cells to name: look at {proposal.sheet}, write what they are into the")
    typer.echo(f"column cell_type of {proposal.table} (any type; empty is skipped), then run")
    typer.echo(f"  wbc adapt {out} --names {proposal.table} --out {model}")
    print_remarks(proposal.passed_over)


def _print_taught(taught: "Taught", model: Path, as_json: bool, *, is_replayed: bool) -> None:
    if as_json:
        right = [{"cell_type": kind, "cells": n, "before": b, "after": a} for kind, n, b, a in _figures(taught)]
        trial = None if taught.trial is None else _trial_facts(taught.trial)
        facts = {"model": str(model), "card": taught.card.to_json(), "right": right, "body": trial}
        told = {"tells_misnaming": taught.tells_misnaming}
        _print_json(facts | told | {"unnamed": taught.unnamed, "passed_over": taught.passed_over})
        return
    rows = [(kind, f"{n}", f"{before:.2f}", f"{after:.2f}") for kind, n, before, after in _figures(taught)]
    print_rows(("right of cells held out", "cells", "before", "after"), rows)
    for line in _body_lines(taught, is_replayed=is_replayed):
        typer.echo(line)
    parent = taught.card.parents[0].reference
    if taught.is_new:
        others = taught.card.taught.unnamed if taught.card.taught else 0
        if others:
            typer.echo(f"learnt from {others:,} cells of the same slides that have no name, too")
        typer.echo(f"model in {model}: wbc count SLIDES --out OUT --classifier {model}")
        unnamed = [f"nobody named a cell {', '.join(taught.unnamed)}: {UNNAMED}"] if taught.unnamed else []
        forgets = [FORGETS.format(parent=parent)] if taught.trial is None or not taught.trial.pays else []
        is_untold = taught.card.reference_sha256 and not taught.tells_misnaming
        untold = [UNTOLD.format(parent=parent)] if is_untold else []
        print_remarks([*taught.passed_over, *unnamed, *untold, *forgets])
    else:
        typer.echo(f"no better than before on cells held out: {model} names cells as {parent} does")
        print_remarks(taught.passed_over)


def _trial_facts(trial: "Trial") -> dict[str, Any]:
    right = {way: round(float(getattr(trial, way).mean()), 4) for way in ("before", "layer", "body")}
    old = {"cells": trial.n_old, **dict(zip(right, (round(part, 4) for part in trial.old), strict=True))}
    return {"cells": len(trial.names), "right": right, "old": old, "sets": trial.sets, "taken": trial.pays}


def _body_lines(taught: "Taught", *, is_replayed: bool) -> Iterator[str]:
    """What was tried of the body and what became of it, or why it was not tried."""
    from wbc.training.body import FEWEST_CELLS, MOST_LOST

    trial, n_named = taught.trial, taught.card.taught.cells if taught.card.taught else 0
    if trial is None:
        if is_replayed:
            yield f"{n_named} cells have names, the body learns from {FEWEST_CELLS} on: the last layer alone is taught"
        elif n_named >= FEWEST_CELLS:
            yield "the last layer alone is taught: with --replay and --data, what was learnt from, the body learns, too"
        return
    own = trial.before, trial.layer, trial.body
    yield _ways(f"of {len(trial.names)} cells held out", [float(right.mean()) for right in own])
    yield _ways(f"of {trial.n_old} old ones ({', '.join(trial.sets)})", trial.old)
    if trial.forgets:
        yield f"the body is left as it was: it would forget more than {MOST_LOST:.0%} of the old cells"
    elif not trial.gains:
        yield "the body is left as it was: a simpler way does as well on the cells held out"


def _ways(which: str, right: Sequence[float]) -> str:
    before, layer, body = right
    return f"right {which}: {before:.3f} before, {layer:.3f} with a new last layer, {body:.3f} with the body taught"


def _figures(taught: "Taught") -> list[tuple[str, int, float, float]]:
    """For each name, and at last for all, the number of cells and the fractions right before and after."""
    import numpy as np

    names = np.array(taught.names, object)
    of_kind = [(kind, names == kind) for kind in sorted(set(taught.names))]
    before, after = taught.before, taught.after
    return [
        (kind, int(which.sum()), round(float(before[which].mean()), 4), round(float(after[which].mean()), 4))
        for kind, which in (*of_kind, ("all", np.ones(len(names), bool)))
    ]


def _print_json(facts: dict[str, Any]) -> None:
    typer.echo(json.dumps(facts, indent=1, ensure_ascii=False))
