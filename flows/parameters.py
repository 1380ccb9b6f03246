"""A flow whose parameters are a settings type's: Prefect checks them and shows each with its explanation."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, get_type_hints

from wbc.counting.parameters import explanations

Parameters = TypeVar("Parameters")
Result = TypeVar("Result")


def from_parameters(function: Callable[[Parameters], Result]) -> Callable[..., Result]:
    """`function` of one settings type, called with its parameters one by one, by position or by name.

    Prefect reads their names, types and defaults from the signature, their explanations from the docstring.
    """
    (settings,) = [hint for name, hint in get_type_hints(function).items() if name != "return"]

    @wraps(function)
    def called(*values: Any, **keywords: Any) -> Result:
        return function(settings(*values, **keywords))

    arguments = [f"    {name}: {explanation}" for name, explanation in explanations(settings).items()]
    called.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *arguments])
    called.__signature__ = inspect.signature(settings)  # type: ignore[attr-defined]
    return called
