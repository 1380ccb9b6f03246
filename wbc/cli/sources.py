"""Where the parameters of a count come from: the command line, else a variable, else a file, else the default."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from wbc.configs import checked, read_toml
from wbc.counting.parameters import CountParameters

VARIABLES = {f.name: f"WBC_{f.name.upper()}" for f in fields(CountParameters)}
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
DEFAULT = "default"
_UNSET: Any = object()
_HINTS = get_type_hints(CountParameters, include_extras=True)
# The parameters of which one source may name only some.
_SOME: Any = make_dataclass("Some", [(n, hint, field(default=_UNSET)) for n, hint in _HINTS.items()], frozen=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """A parameter's value, and where it comes from: an option, a variable, a file's path, or `default`."""

    value: Any
    origin: str


def settings(options: Mapping[str, Any], variables: Mapping[str, str], file: str | None) -> dict[str, Setting]:
    """What holds for each parameter; SLIDES or OUT are missing where nothing names them.

    `options` are those given on the command line; an empty variable counts as none. Raises ValueError, naming source,
    parameter and value, for what no parameter can be.
    """
    values = {f.name: Setting(f.default, DEFAULT) for f in fields(CountParameters) if f.default is not MISSING}
    if file is not None:
        values |= _settings(read_toml(file, _SOME), file)
    for name, variable in VARIABLES.items():
        if text := variables.get(variable):
            values |= _settings(checked({name: _value(name, text)}, _SOME, variable), variable)
    for name, value in options.items():
        values |= _settings(checked({name: value}, _SOME, option(name)), option(name))
    return {name: values[name] for name in _HINTS if name in values}


def parameters(values: Mapping[str, Setting]) -> CountParameters:
    """The count that is asked for. Raises ValueError where SLIDES or OUT are missing."""
    for name in _HINTS:
        if name not in values:
            raise ValueError(
                f"{name} is missing: give it as {option(name)}, in {VARIABLES[name]}, or in a file with --config"
            )
    return CountParameters(**{name: setting.value for name, setting in values.items()})


def option(name: str) -> str:
    """A parameter as the command line has it."""
    return "SLIDES" if name == "slides" else f"--{name.replace('_', '-')}"


def plain_type(name: str) -> Any:
    """A parameter's type without annotations and None: str, float, Literal[…]."""
    hint = get_args(_HINTS[name])[0]
    if not isinstance(hint, UnionType):
        return hint
    (plain,) = (part for part in get_args(hint) if part is not NoneType)
    return plain


def _settings(some: Any, origin: str) -> dict[str, Setting]:
    values = {name: getattr(some, name) for name in _HINTS}
    return {name: Setting(value, origin) for name, value in values.items() if value is not _UNSET}


def _value(name: str, text: str) -> Any:
    """A variable's text as TOML would have the value; as it stands where it is none."""
    value_type = plain_type(name)
    if value_type in (int, float):
        try:
            return json.loads(text)
        except ValueError:
            return text
    words = {**dict.fromkeys(YES, True), **dict.fromkeys(NO, False)}
    return text if value_type is str else words.get(text.lower(), text)
