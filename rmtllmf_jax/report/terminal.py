"""The tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rmtllmf_jax.report.sheet import Sheet

if TYPE_CHECKING:
    from pandas import DataFrame

_RULED = box.SIMPLE_HEAD, (0, 1, 0, 0)


def print_summary(results: DataFrame, console: Console | None = None) -> None:
    """Print the means by number of tasks, the accuracy of each task and the verdict.

    `console` is standard output by default. Numbers are percentages. A table too wide for the
    console continues in a second one, so that no number is cut.
    """
    from rmtllmf_jax.report.sheets import all_sheets
    from rmtllmf_jax.report.verdict import replication, verdict

    console = console or Console()
    for sheet in all_sheets(results, spread=False):
        print_sheet(sheet, console)
    for sentence in [*verdict(results), *replication(results)]:
        console.print(sentence, markup=False, highlight=False)


def print_sheet(sheet: Sheet, console: Console) -> None:
    """Print one table, in as many blocks of columns as the console's width requires."""
    plain = is_plain(console)
    lines = [sheet.header, *sheet.rows]
    widths = [max(map(len, column)) + 2 for column in zip(*lines)]
    blocks: list[list[int]] = [[]]
    for place in range(2, len(widths)):
        if blocks[-1] and sum(widths[p] for p in [0, 1, *blocks[-1], place]) > console.width:
            blocks.append([])
        blocks[-1].append(place)
    for block in blocks:
        console.print(Text(sheet.title, style="italic"))  # a table's own title would be wrapped
        table = Table(pad_edge=False)
        table.box, table.padding = (None, (0, 2, 0, 0)) if plain else _RULED
        for name in sheet.header[:2]:
            table.add_column(Text(name), no_wrap=True)
        for place in block:
            number = max(len(row[place]) for row in sheet.rows)
            title = Text(sheet.header[place])
            table.add_column(title, justify="right", min_width=number, overflow="fold")
        for row in sheet.rows:
            table.add_row(*(Text(row[place]) for place in (0, 1, *block)))
        console.print(table)
        if plain:
            console.print()  # the space that the rules of a terminal's table take


def print_texts(sheet: Sheet, console: Console) -> None:
    """Print a table of texts: the last column is wrapped at a terminal's width.

    In a file or a pipe every row is one line, so that paths stay whole.
    """
    if is_plain(console):
        lines = [sheet.header, *sheet.rows]
        widths = [max(map(len, column)) for column in zip(*lines)]
        rows = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        text = "\n".join([sheet.title, *rows, ""])
        console.print(Text(text), soft_wrap=True)
        return
    table = Table(title=Text(sheet.title), title_justify="left", pad_edge=False)
    table.box, table.padding = _RULED
    for name in sheet.header:
        table.add_column(Text(name), no_wrap=name != sheet.header[-1], overflow="fold")
    for row in sheet.rows:
        table.add_row(*map(Text, row))
    console.print(table)


def is_plain(console: Console) -> bool:
    """Return whether to omit lines and colours: in a file, a pipe, or with NO_COLOR."""
    return not console.is_terminal or console.no_color
