"""Plain lists on the terminal: rows of text under headings."""

import sys
from collections.abc import Iterable, Sequence


def print_rows(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text, a column a heading; into a pipe or a file without any wrapping."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, show_edge=False, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    (Console() if sys.stdout.isatty() else Console(width=200)).print(table)
