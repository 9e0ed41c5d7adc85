"""The tables as printed: percentages as strings, for the terminal and for markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from rmtllmf_jax.report.io import completed, metric_of
from rmtllmf_jax.report.labels import in_order, joined
from rmtllmf_jax.report.tables import (
    LAW,
    best_scales,
    is_share,
    models_alone,
    parts,
    public_law,
    shown,
    summary,
    versions,
)

_MAIN = ("none", "r-mtllmf", "control")


@dataclass(frozen=True)
class Sheet:
    """A titled table of strings; the first columns hold names or words, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    names: int = 2
    """How many columns hold names or words."""


def all_sheets(results: pd.DataFrame, *, spread: bool) -> list[Sheet]:
    """Return every table of a report; averages are also given without weak tasks.

    Each merge method has its own tables, and so has an axis, whose columns are its levels. `spread`
    adds standard deviations to the tables by number of tasks and by level.
    """
    sheets = []
    for part in parts(results):
        found = []
        for note, table in versions(part.results).items():
            if part.axis:
                averages = [_level_sheet(table, part.axis, spread)]
            else:
                averages = [_summary_sheet(table), _size_sheet(table, spread)]
            found += [replace(sheet, title=joined(sheet.title, note)) for sheet in averages]
        found += [] if part.axis else [_task_sheet(part.results)]
        for sheet in found:
            title = joined(sheet.title, part.title).replace("accuracy", metric_of(part.results), 1)
            sheets.append(replace(sheet, title=title))
    return sheets


def _summary_sheet(results: pd.DataFrame) -> Sheet:
    rows = [
        [
            *_names(row["scenario"], row["protection"]),
            *(percent(row[name]) for name in ("mean", "std", "control")),
            str(row["cells"]),
            "-" if math.isnan(row["mse"]) else f"{row['mse']:.3g}",
        ]
        for row in summary(results).to_dict("records")
    ]
    title = "Average normalised accuracy (%) over combinations, draws and seeds"
    header = ["scenario", "protection", "mean", "std", "control", "cells", "MSE"]
    return Sheet(title, header, rows)


def _size_sheet(results: pd.DataFrame, spread: bool) -> Sheet:
    table = summary(results, "size")
    return _average_sheet(table[table["protection"].isin(_MAIN)], "size", "number of tasks", spread)


def _level_sheet(results: pd.DataFrame, axis: str, spread: bool) -> Sheet:
    """Return the means by level; the control has no level, and its mean is in every column."""
    table = summary(results)
    along, control = table[table["axis"] == axis], table[table["protection"] == "control"]
    everywhere = [control.assign(level=level) for level in along["level"].unique()]
    return _average_sheet(pd.concat([along, *everywhere]), "level", axis, spread)


def _average_sheet(table: pd.DataFrame, columns: str, by: str, spread: bool) -> Sheet:
    texts = [
        f"{percent(mean)} ± {percent(std)}" if spread and cells > 1 else percent(mean)
        for mean, std, cells in zip(table["mean"], table["std"], table["cells"], strict=True)
    ]
    what = "mean ± standard deviation" if spread else "mean"
    title = f"Average normalised accuracy (%) by {by}, {what}"
    return _wide(title, table.assign(text=texts), columns)


def _task_sheet(results: pd.DataFrame) -> Sheet:
    """Return each task's mean score; base and fine-tuned models first."""
    keys = ["scenario", "protection", "task"]
    means = completed(results).groupby(keys, as_index=False)["score"].mean()
    means = means.assign(text=[shown(results, score) for score in means["score"]])
    title = f"Mean accuracy{' (%)' if is_share(results) else ''} of each task"
    sheet, alone = _wide(title, means, "task"), models_alone(results)
    first = [
        ["-", name, *(shown(results, score) for score in alone[column])]
        for name, column in (("base", "base_score"), ("fine-tuned", "finetuned_score"))
    ]
    return replace(sheet, rows=first + sheet.rows)


def _wide(title: str, table: pd.DataFrame, columns: str) -> Sheet:
    """Spread the `text` of a table over one column for each value of `columns`."""
    keys = ["scenario", "protection"]
    wide = table.pivot(index=keys, columns=columns, values="text").fillna("-")
    values = [value if isinstance(value, str) else f"{value:.4g}" for value in wide.columns]
    lines = in_order(wide.reset_index(), keys).itertuples(index=False, name=None)
    return Sheet(title, [*keys, *values], [[*_names(*line[:2]), *line[2:]] for line in lines])


def _names(scenario: str, protection: str) -> list[str]:
    """Name a row as the options do; rows without an uplink have no scenario."""
    return ["-" if protection == "control" else scenario, protection]


def scale_sheets(results: pd.DataFrame, scales: pd.DataFrame | None) -> Iterator[Sheet]:
    """Yield `scale_sheet` for each merge method that has one."""
    for rule, part in {part.rule: part for part in parts(results)}.items():
        own = None if scales is None else scales[scales["rule"] == rule]
        sheet = scale_sheet(part.results, None if own is None or own.empty else own)
        if sheet is not None:
            yield replace(sheet, title=joined(sheet.title, part.title))


def scale_sheet(results: pd.DataFrame, scales: pd.DataFrame | None) -> Sheet | None:
    """Return one merge method's coefficients by size: used, best on validation, published fit.

    `None` if nothing was merged.
    """
    merged = results[(results["protection"] != "control") & (results["scale"] > 0)]
    if merged.empty:
        return None
    what = "merging coefficient"
    used = merged.groupby("size")["scale"].agg(["min", "max"])
    sizes = [int(size) for size in used.index]
    rows = [[what, "used", *(_span(*row) for row in used.itertuples(index=False))]]
    if scales is not None:
        best = {int(row["size"]): row for row in best_scales(scales).to_dict("records")}
        reached = [best.get(size) for size in sizes]
        chosen = [_chosen(row) if row else "-" for row in reached]
        scores = [percent(row["mean"]) if row else "-" for row in reached]
        rows.append([what, "best on validation", *chosen])
        rows.append(["normalised accuracy (%)", "there, on validation", *scores])
    fit = [f"{value:.2f}" for value in public_law(np.array(sizes))]
    rows.append([what, f"published fit {LAW}", *fit])
    title = "Merging coefficient by number of tasks"
    return Sheet(title, ["what", "which", *map(str, sizes)], rows)


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if math.isclose(low, high) else f"{low:.3g}-{high:.3g}"


def _chosen(row: dict[str, Any]) -> str:
    return f"{row['scale']:g}{' (edge)' if row['low'] or row['high'] else ''}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal, `-` for NaN."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


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
