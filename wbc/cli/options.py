"""Options that several verbs share, and the checks of their values."""

import re
from typing import Annotated

import typer


def check_device(value: str) -> str:
    """`value` where it names a device. Raises BadParameter."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise typer.BadParameter(f"{value!r} is not auto, cpu, cuda or cuda:NUMBER")
    return value


def positive(value: float | None) -> float | None:
    """`value` where it is one above 0, or none. Raises BadParameter."""
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value} is not a positive number")
    return value


Device = Annotated[str, typer.Option(callback=check_device, help="auto, cpu, cuda or cuda:NUMBER.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")]
