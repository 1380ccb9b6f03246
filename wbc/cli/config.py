"""`wbc config`: the parameters of a count, and where each comes from."""

import json
import os
from typing import Any

import typer

from wbc.cli.options import AsJson, CountCommand, CountConfig, given_options, with_count_options
from wbc.cli.rows import print_rows
from wbc.cli.sources import VARIABLES, Setting, settings
from wbc.cli.terminal import usage_errors

app = typer.Typer(no_args_is_help=True)


@app.command("show", cls=CountCommand)
@with_count_options
def show(context: typer.Context, config: CountConfig = None, as_json: AsJson = False, **_: Any) -> None:
    """Print every parameter of a count, its value, and where that comes from: option, variable, file or default.

    It takes the same arguments as `wbc count`, and counts nothing.
    """
    with usage_errors():
        values = settings(given_options(context), os.environ, config)
    if as_json:
        origins = {name: _as_json(values.get(name)) for name in VARIABLES}
        typer.echo(json.dumps(origins, indent=1, ensure_ascii=False))
    else:
        print_rows(("parameter", "value", "from"), [_row(name, values.get(name)) for name in VARIABLES])


def _as_json(setting: Setting | None) -> dict[str, Any]:
    return {"value": None, "from": None} if setting is None else {"value": setting.value, "from": setting.origin}


def _row(name: str, setting: Setting | None) -> tuple[str, str, str]:
    if setting is None:
        return name, "", "not given"
    words = {None: "none", True: "yes", False: "no"}
    value = setting.value
    return name, words[value] if value is None or isinstance(value, bool) else str(value), setting.origin
