"""A flow whose parameters are a settings type's: Prefect checks them and shows each with its explanation."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar

from wbc.counting.parameters import CountParameters, explanations

Result = TypeVar("Result", covariant=True)


class Counting(Protocol[Result]):
    """A function of a count's parameters."""

    __doc__: str | None

    def __call__(self, parameters: CountParameters, /) -> Result: ...


def from_parameters(function: Counting[Result]) -> Callable[..., Result]:
    """`function`, called with the parameters one by one, by position or by name, as `CountParameters` has them.

    Prefect reads their names, types and defaults from the signature, their explanations from the docstring.
    """

    @wraps(function)
    def called(*values: Any, **keywords: Any) -> Result:
        return function(CountParameters(*values, **keywords))

    arguments = [f"    {name}: {explanation}" for name, explanation in explanations().items()]
    called.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *arguments])
    called.__signature__ = inspect.signature(CountParameters)  # type: ignore[attr-defined]
    return called
