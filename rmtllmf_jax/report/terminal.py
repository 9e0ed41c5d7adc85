"""The tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmtllmf_jax.report.sheets import Sheet, all_sheets
from rmtllmf_jax.report.verdict import verdict


def print_summary(results: pd.DataFrame, console: Console | None = None) -> None:
    """Print the summary, the means by number of tasks, the accuracy of each task and the verdict.

    `console` is standard output unless given. Numbers are percentages. A table too wide for the
    console goes on in a second one, so that no number is cut.
    """
    console = console or Console()
    for sheet in all_sheets(results, spread=False):
        print_sheet(sheet, console)
    for sentence in verdict(results):
        console.print(sentence, markup=False, highlight=False)


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Print one table, in as many blocks of columns as the console's width asks for."""
    for table in _tables(sheet, console.width):
        console.print(table)


def _tables(sheet: Sheet, width: int) -> Iterator[Table]:
    lines = [sheet.header, *sheet.rows]
    names = sum(max(len(line[place]) for line in lines) + 2 for place in (0, 1))
    number = max(len(cell) for row in sheet.rows for cell in row[2:])
    each = max(1, (width - names) // (number + 2))
    for start in range(2, len(sheet.header), each):
        block = slice(start, start + each)
        table = Table(title=Text(sheet.title), title_justify="left", box=box.SIMPLE_HEAD)
        table.padding, table.pad_edge = (0, 1, 0, 0), False
        for name in sheet.header[:2]:
            table.add_column(Text(name), no_wrap=True)
        for name in sheet.header[block]:
            table.add_column(Text(name), justify="right", min_width=number, overflow="fold")
        for row in sheet.rows:
            table.add_row(*(Text(cell) for cell in (*row[:2], *row[block])))
        yield table
