"""A table of strings, to be printed, written as markdown or put on a page."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Sheet:
    """A titled table of strings; the first columns hold names or words, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    names: int = 2
    """How many columns hold names or words."""


def markdown_table(sheet: Sheet) -> str:
    """Return a sheet as a markdown table, words left-aligned and numbers right-aligned."""
    rule = [":--" if place < sheet.names else "--:" for place in range(len(sheet.header))]
    rows = [[one_line(cell) for cell in row] for row in (sheet.header, *sheet.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def one_line(text: str) -> str:
    """Return a text as one line, escaped so that names act neither as markdown nor as HTML.

    Markdown passes HTML through; a link or a picture would be fetched where the page is shown.
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|\[])", r"\\\1", text)
