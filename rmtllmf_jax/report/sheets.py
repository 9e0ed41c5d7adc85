"""The tables as printed: percentages as strings, for the terminal and for markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from rmtllmf_jax.report.order import in_order
from rmtllmf_jax.report.parts import Part, parts
from rmtllmf_jax.report.tables import by_size, per_task, summary
from rmtllmf_jax.report.weak import weak_tasks, without_weak_tasks

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
        for sheet in _part_sheets(part, spread):
            title = f"{sheet.title}, {part.title}" if part.title else sheet.title
            sheets.append(replace(sheet, title=title))
    return sheets


def _part_sheets(part: Part, spread: bool) -> Iterator[Sheet]:
    weak, informative = weak_tasks(part.results), without_weak_tasks(part.results)
    versions = {"": part.results}
    if weak and len(informative):
        versions[f", without {', '.join(weak)}"] = informative
    for note, results in versions.items():
        if part.axis:
            sheets = [level_sheet(results, part.axis, spread=spread)]
        else:
            sheets = [summary_sheet(results), size_sheet(results, spread=spread)]
        for sheet in sheets:
            yield replace(sheet, title=sheet.title + note)
    if not part.axis:
        yield task_sheet(part.results)


def summary_sheet(results: pd.DataFrame) -> Sheet:
    """Return the table of `tables.summary` in percent."""
    header = ["scenario", "protection", "mean", "std", "control", "cells", "MSE"]
    rows = [
        [
            *_names(row),
            percent(row["mean"]),
            percent(row["std"]),
            percent(row["control"]),
            str(row["cells"]),
            "-" if math.isnan(row["mse"]) else f"{row['mse']:.3g}",
        ]
        for row in summary(results).to_dict("records")
    ]
    title = "Average normalised accuracy (%) over combinations, draws and seeds"
    return Sheet(title, header, rows)


def size_sheet(results: pd.DataFrame, *, spread: bool) -> Sheet:
    """Return the means of `tables.by_size` for none, R-MTLLMF and control, one column per size.

    `spread` adds the standard deviation over the cells.
    """
    table = by_size(results)
    table = table[table["protection"].isin(_MAIN)]
    sizes = sorted(table["size"].unique())
    rows = []
    for keys, group in _groups(table):
        values = {row["size"]: row for row in group.to_dict("records")}
        cells = [_mean(values[size], spread) if size in values else "-" for size in sizes]
        rows.append([*keys, *cells])
    what = "mean ± standard deviation" if spread else "mean"
    title = f"Average normalised accuracy (%) by number of tasks, {what}"
    return Sheet(title, ["scenario", "protection", *(str(size) for size in sizes)], rows)


def level_sheet(results: pd.DataFrame, axis: str, *, spread: bool) -> Sheet:
    """Return the means over combinations, draws and seeds of one rule, one column per level.

    The levels are those of `axis`; the control has none, and its mean is in every column.
    `spread` adds the standard deviation over the cells.
    """
    table = summary(results).rename(columns={"cells": "count"})
    levels = sorted(table.loc[table["axis"] == axis, "level"].unique())
    rows = []
    for keys, group in _groups(table):
        values = {row["level"]: row for row in group.to_dict("records")}
        if keys[0] == "-":
            values = dict.fromkeys(levels, next(iter(values.values())))
        cells = [_mean(values[level], spread) if level in values else "-" for level in levels]
        rows.append([*keys, *cells])
    what = "mean ± standard deviation" if spread else "mean"
    title = f"Average normalised accuracy (%) by {axis}, {what}"
    return Sheet(title, ["scenario", "protection", *(f"{level:.4g}" for level in levels)], rows)


def task_sheet(results: pd.DataFrame) -> Sheet:
    """Return each task's mean accuracy, one column per task; base and fine-tuned models first."""
    table = per_task(results)
    tasks = sorted(table["task"].unique())
    alone = results.groupby("task")[["base_accuracy", "finetuned_accuracy"]].mean()
    rows = [
        ["-", name, *(percent(alone[column][task]) for task in tasks)]
        for name, column in (("base", "base_accuracy"), ("fine-tuned", "finetuned_accuracy"))
    ]
    for keys, group in _groups(table):
        accuracy = dict(zip(group["task"], group["accuracy"]))
        rows.append([*keys, *(percent(accuracy.get(task, math.nan)) for task in tasks)])
    return Sheet("Mean accuracy (%) of each task", ["scenario", "protection", *tasks], rows)


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one decimal, `-` for NaN."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _mean(row: dict[str, Any], spread: bool) -> str:
    text = percent(row["mean"])
    return f"{text} ± {percent(row['std'])}" if spread and row["count"] > 1 else text


def _names(row: pd.Series | dict[str, Any]) -> list[str]:
    """Name a row as the options do; rows without an uplink have no scenario."""
    protection = row["protection"]
    return ["-" if protection == "control" else row["scenario"], protection]


def _groups(table: pd.DataFrame) -> Iterator[tuple[list[str], pd.DataFrame]]:
    table = in_order(table, ["scenario", "protection"])
    for _, group in table.groupby(["scenario", "protection"], sort=False):
        yield _names(group.iloc[0]), group
