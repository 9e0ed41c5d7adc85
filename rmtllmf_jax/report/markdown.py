"""The page `summary.md`: verdict, tables, figures, configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from rmtllmf_jax.report.sheets import Sheet, all_sheets
from rmtllmf_jax.report.verdict import verdict

_SHOWN = (
    "command", "commit", "machine", "device", "platform", "model", "checkpoint", "preset",
    "image_size", "tasks", "sizes", "scenarios", "protections", "draws", "seed", "seeds", "scale",
    "kappa", "shots", "versions",
)  # fmt: skip


def page(
    name: str, results: pd.DataFrame, run: Mapping[str, Any], figures: list[str], skipped: list[str]
) -> str:
    """Return the markdown page of the run `name`.

    `run` is the content of `run.json`, every key optional; `figures` are the stems of the PNG files
    beside the page; `skipped` says which figures are missing and why.
    """
    parts = [f"# Report of {name}", "## Verdict", _list(verdict(results))]
    for sheet in all_sheets(results, spread=True):
        parts += [f"## {sheet.title}", table(sheet)]
    parts += ["## Figures", *(f"![{stem}]({stem}.png)" for stem in figures)]
    if skipped:
        parts.append(_list(skipped))
    settings = [[key, text] for key, text in _settings(run)]
    shown = table(Sheet("", ["key", "value"], settings)) if settings else "None recorded."
    parts += ["## Configuration", shown]
    return "\n\n".join(parts) + "\n"


def table(sheet: Sheet) -> str:
    """Return a sheet as a markdown table, names to the left and numbers to the right."""
    rule = [":--" if place < 2 else "--:" for place in range(len(sheet.header))]
    rows = [[_escape(cell) for cell in row] for row in (sheet.header, *sheet.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def _settings(run: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in run.items():
        if key in _SHOWN:
            yield above + key, value if isinstance(value, str) else json.dumps(value)
        elif isinstance(value, Mapping):
            yield from _settings(value, f"{above}{key}.")


def _list(lines: list[str]) -> str:
    return "\n".join(f"- {_escape(line)}" for line in lines)


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
