"""Options that several verbs share; those of a count are made from its parameters."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, TypeVar, get_args

import typer
from typer.core import TyperCommand

from wbc.cli.sources import plain_type
from wbc.counting.parameters import CountParameters, Drawing, check_device, explanations

Verb = TypeVar("Verb", bound=Callable[..., None])


def _device(value: str) -> str:
    try:
        return check_device(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Device = Annotated[str, typer.Option(callback=_device, help="auto, cpu, cuda or cuda:NUMBER.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]
CountConfig = Annotated[
    str | None,
    typer.Option(
        "--config",
        envvar="WBC_CONFIG",
        help="TOML file of these options, with lines such as `min_score = 0.6`.",
    ),
]


class CountCommand(TyperCommand):
    """A verb with the options of a count, whose `--annotate` may stand without a value and then means `white`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the value that a lone `--annotate` leaves out."""
        pairs = zip(args, [*args, ""][1:], strict=True)
        lone = (word == "--annotate" and after not in get_args(Drawing) for word, after in pairs)
        return super().parse_args(
            ctx, [f"{word}=white" if bare else word for word, bare in zip(args, lone, strict=True)]
        )


def with_count_options(verb: Verb) -> Verb:
    """`verb(context, …, **_)` with an option for each parameter of a count before its own."""
    own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    first, *others = [p.replace(kind=p.KEYWORD_ONLY) for p in own]
    of_count = [_parameter(f) for f in fields(CountParameters)]
    verb.__signature__ = inspect.Signature([first, *of_count, *others])  # type: ignore[attr-defined]
    return verb


def given_options(context: typer.Context) -> dict[str, Any]:
    """Those options of a count that stand on the command line."""
    names = [f.name for f in fields(CountParameters)]
    sources = {name: context.get_parameter_source(name) for name in names}
    return {
        n: context.params[n] for n, source in sources.items() if source is not None and source.name == "COMMANDLINE"
    }


def _parameter(field: "Field[Any]") -> inspect.Parameter:
    """A parameter of a count as Typer reads it. All may be left out: a variable or a file may name them."""
    plain, info = plain_type(field.name), typer.Argument if field.name == "slides" else typer.Option
    default = None if field.default is MISSING else field.default
    hint: Any = Annotated[plain if default is not None else plain | None, info(help=explanations()[field.name])]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
