"""The page `summary.md`: verdict, tables, figures, configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rmtllmf_jax.report.io import settings
from rmtllmf_jax.report.plates import Plate
from rmtllmf_jax.report.sheets import Sheet


def page(
    name: str,
    verdict: Sequence[str],
    plates: Sequence[Plate],
    skipped: Sequence[str],
    sheets: Sequence[Sheet],
    run: Mapping[str, Any],
) -> str:
    """Return the markdown page of the run `name`.

    `plates` are the figures, with their PNG files beside the page; `skipped` says which are missing
    and why; `run` is the content of `run.json`, every key optional.
    """
    parts = [f"# Report of {_escape(name)}", "## Verdict", _list(verdict)]
    for sheet in sheets:
        parts += [f"## {_escape(sheet.title)}", table(sheet)]
    parts.append("## Figures")
    for plate in plates:
        parts += [f"![{_escape(plate.title)}]({plate.stem}.png)", _escape(plate.caption)]
    if skipped:
        parts.append(_list(skipped))
    rows = list(settings(run))
    shown = table(Sheet("", ["key", "value"], rows)) if rows else "None recorded."
    parts += ["## Configuration", shown]
    return "\n\n".join(parts) + "\n"


def table(sheet: Sheet) -> str:
    """Return a sheet as a markdown table, words left-aligned and numbers right-aligned."""
    rule = [":--" if place < sheet.names else "--:" for place in range(len(sheet.header))]
    rows = [[_escape(cell) for cell in row] for row in (sheet.header, *sheet.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    """Return a text as one line, escaped so that names act neither as markdown nor as HTML.

    Markdown passes HTML through; a link or a picture would be fetched where the page is shown.
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|\[])", r"\\\1", text)
