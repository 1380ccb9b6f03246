"""What people write in files, as frozen settings: TOML and JSON through pydantic, every mistake named in a sentence."""

import json
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from upath import UPath

Settings = TypeVar("Settings")

UNIONS = (Union, types.UnionType)

# What pydantic's types of errors mean to someone who wrote a file.
WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "dataclass_type": "a table",
    "none_required": "null",
}


def read_toml(path: str | Path | UPath, settings: type[Settings]) -> Settings:
    """The settings of a TOML file, as `checked` checks them.

    Raises ValueError, which names the file, where it cannot be read, is no TOML or does not fit.
    """
    try:
        content = UPath(path).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    return parse_toml(content, settings, str(path))


def parse_toml(content: bytes, settings: type[Settings], where: str) -> Settings:
    """The settings of a TOML file's `content`; `where` is its name. Raises ValueError as `read_toml` does."""
    try:
        values = tomllib.loads(content.decode())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return checked(values, settings, where)


def checked(values: object, settings: type[Settings], where: str) -> Settings:
    """Values of TOML's or JSON's types as the frozen dataclass `settings`, dataclasses within it too.

    Types are taken strictly: text is no number, and neither is true. A list becomes a tuple where the settings have
    one. Keys that no settings have are refused. Raises ValueError with one line, as in "configs/x.toml: loop.steps is
    'many', not an integer"; rows of a list are counted from 1, or told by their name where they have one.
    """
    try:
        # As JSON, because it is there that pydantic's strict mode takes lists for tuples and tables for dataclasses.
        adapter = _adapter(settings)  # type: ignore[arg-type]  # a class is hashable, whatever mypy thinks
        (fitting,) = adapter.validate_json(json.dumps([values], default=_refuse))
    except ValidationError as error:
        sentences = (_sentence(e, values, settings) for e in error.errors(include_url=False))
        raise ValueError(f"{where}: {'; '.join(dict.fromkeys(sentences))}") from error
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
    settled: Settings = fitting
    return settled


@cache
def _adapter(settings: Any) -> TypeAdapter[Any]:
    # In a tuple, because pydantic hands its configuration down to a standard dataclass but does not take one for it.
    wrapped: Any = tuple[settings]
    return TypeAdapter(wrapped, config=ConfigDict(strict=True, extra="forbid"))


def _refuse(value: object) -> Any:
    raise TypeError(f"{value} is a {type(value).__name__}, and no setting takes one")


def _sentence(error: ErrorDetails, values: object, settings: type[Any]) -> str:
    loc = error["loc"][1:]
    key, value, more = _key(loc, values, error["type"] == "missing"), error["input"], error.get("ctx", {})
    match error["type"]:
        case "missing":
            return f"{key} is missing"
        case "unexpected_keyword_argument":
            return f"{key} is unknown; the keys are {', '.join(_keys(settings, loc[:-1]))}"
        case "value_error":
            return f"{key}: {more['error']}" if key else str(more["error"])
        case "literal_error":
            return f"{key} is {value!r}, none of {more['expected'].replace(' or ', ', ')}"
        case "union_tag_invalid":
            return f"{key}.{more['discriminator'][1:-1]} is {more['tag']!r}, none of {more['expected_tags']}"
        case "union_tag_not_found":
            return f"{key}.{more['discriminator'][1:-1]} is missing"
        case kind if kind in WANTED:
            return f"{key or 'this'} is {value!r}, not {WANTED[kind]}"
    return f"{key or 'this'} is {value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _key(loc: Sequence[int | str], values: object, last_is_missing: bool) -> str:
    """`loc` as a user reads it: "loop.steps", "cell_types[blast].lineage", "data[2].weight".

    What `loc` names and `values` lack is pydantic's tag of the one of several dataclasses that was chosen.
    """
    key, here = "", values
    for place, part in enumerate(loc, 1):
        is_missing = isinstance(part, str) and isinstance(here, Mapping) and part not in here
        if is_missing and not (last_is_missing and place == len(loc)):
            continue
        here = _inside(here, part)
        if isinstance(part, int):
            name = here.get("name") if isinstance(here, Mapping) else None
            key += f"[{name if isinstance(name, str) else part + 1}]"
        else:
            key += f".{part}" if key else part
    return key


def _inside(values: Any, part: int | str) -> object:
    try:
        return values[part]
    except (KeyError, IndexError, TypeError):
        return None


def _keys(settings: Any, loc: Iterable[int | str]) -> list[str]:
    """The keys of the dataclass at `loc` within `settings`."""
    here = settings
    for part in loc:
        here = _within(_plain(here), part)
    hints = get_type_hints(_plain(here), include_extras=True)
    return [_alias(hints[f.name]) or f.name for f in fields(_plain(here))]


def _alias(hint: Any) -> str | None:
    """What a file calls a field that Python cannot call so, as `class`."""
    return next((m.alias for m in getattr(hint, "__metadata__", ()) if isinstance(m, FieldInfo)), None)


def _within(hint: Any, part: int | str) -> Any:
    """The type at `part` of a dataclass, tuple, dict, or union of dataclasses, of which `part` is a tag."""
    if is_dataclass(hint):
        return get_type_hints(hint, include_extras=True)[str(part)]
    if get_origin(hint) in UNIONS:
        return next(member for member in get_args(hint) if part in _tags(member))
    return get_args(hint)[-1 if isinstance(part, str) else 0]  # a dict's last, a tuple's first


def _tags(member: Any) -> set[Any]:
    return {value for hint in get_type_hints(member).values() for value in get_args(hint)}


def _plain(hint: Any) -> Any:
    """A type without its annotation, and without None as an alternative."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    others = [a for a in get_args(hint) if a is not type(None)]
    return _plain(others[0]) if get_origin(hint) in UNIONS and len(others) == 1 else hint
