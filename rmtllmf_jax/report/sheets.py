"""The tables as printed: percentages as strings, for the terminal and for markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rmtllmf_jax.report.intervals import Interval
from rmtllmf_jax.report.io import completed, metric_of
from rmtllmf_jax.report.labels import in_order, is_unfused, joined, unfused
from rmtllmf_jax.report.sheet import Sheet
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

_INTERVALS = "95 % intervals: bootstrap over combinations, channel realisations and seeds"


def all_sheets(results: pd.DataFrame, *, spread: bool) -> list[Sheet]:
    """Return every table of a report; averages are also given without weak tasks.

    Each merge method has its own tables, and so has an axis, with its levels as columns. `spread`
    adds intervals to the means at one number of tasks.
    """
    sheets = []
    for part in parts(results):
        found = []
        for note, table in versions(part.results).items():
            averages = (
                _level_sheets(table, part.axis, spread)
                if part.axis
                else [_size_sheet(table, spread)]
            )
            found += [replace(sheet, title=joined(sheet.title, note)) for sheet in averages]
        found += [] if part.axis else [_task_sheet(part.results)]
        for sheet in found:
            title = joined(sheet.title, part.title).replace("accuracy", metric_of(part.results), 1)
            sheets.append(replace(sheet, title=title))
    return sheets


def _size_sheet(results: pd.DataFrame, spread: bool) -> Sheet:
    """Return the means by number of tasks, and beside them those over all numbers."""
    table = summary(results, "size")
    sheet = _average_sheet(table, "size", "number of tasks", spread)
    several = table["size"].nunique() > 1
    beside = [
        [
            *([f"{100 * row['mean']:.0f}"] if several else []),
            str(row["cells"]),
            f"{row['mse']:.3g}" if row["mse"] > 0 else "-",
        ]
        for row in summary(results).to_dict("records")
    ]
    header = [*sheet.header, *(["mean over N"] if several else []), "cells", "mean MSE"]
    rows = [[*row, *more] for row, more in zip(sheet.rows, beside, strict=True)]
    return replace(sheet, header=header, rows=rows)


def _level_sheets(results: pd.DataFrame, axis: str, spread: bool) -> Iterator[Sheet]:
    """Yield the means by level for each number of tasks, then their mean over these.

    Rows without an uplink have no level, and appear in every column.
    """
    table = summary(results, "size")
    along, alone = table[table["axis"] == axis], table[unfused(table["protection"])]
    everywhere = [alone.assign(level=level) for level in along["level"].unique()]
    table = pd.concat([along, *everywhere])
    sizes = list(table.groupby("size"))
    for size, own in sizes:
        yield _average_sheet(own, "level", f"{axis}, N = {size}", spread)
    if len(sizes) > 1:
        means = table.groupby(["scenario", "protection", "level"], as_index=False)["mean"].mean()
        yield _average_sheet(means, "level", f"{axis}, mean over N", spread=False)


def _average_sheet(table: pd.DataFrame, columns: str, by: str, spread: bool) -> Sheet:
    table = table if spread else table.assign(low=np.nan, high=np.nan)
    ends = zip(table["mean"], table["low"], table["high"], strict=True)
    title = f"Average normalised accuracy (%) by {by}{f'; {_INTERVALS}' if spread else ''}"
    return _wide(title, table.assign(text=[Interval(*row).text() for row in ends]), columns)


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
    """Name a row like the options; rows without an uplink have no scenario."""
    return ["-" if is_unfused(protection) else scenario, protection]


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
    merged = results[~unfused(results["protection"]) & (results["scale"] > 0)]
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
        scores = [f"{100 * row['mean']:.0f}" if row else "-" for row in reached]
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
