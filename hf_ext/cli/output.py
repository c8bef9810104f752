"""Tables on the terminal; where the output goes to a file or another program they keep one line per row."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table


def show_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints rows of text under `columns`; the last column is cut where the terminal is too narrow."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*row)
    for column in table.columns[:-1]:
        column.min_width = max(map(len, [str(column.header), *map(str, column.cells)]))
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False).print(table)
