"""Averages of the results: over a cell's tasks first, then over cells.

Every accuracy is a fraction. Rows are in the order of `order.py`, whatever the order of the file.
Nothing is averaged over merge methods or over the levels of an axis.
"""

from __future__ import annotations

import pandas as pd

from rmtllmf_jax.report.order import in_order
from rmtllmf_jax.report.reading import CELL, completed, read_cosines, read_results, read_scales

__all__ = [
    "base_by_size",
    "by_size",
    "cell_scores",
    "per_task",
    "read_cosines",
    "read_results",
    "read_scales",
    "spread",
    "summary",
]

SETTING = ["rule", "axis", "level"]
"""Columns that are never averaged over."""


def cell_scores(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell: the average normalised accuracy over its tasks.

    Columns: those of `reading.CELL`, `size`, `score` (the average normalised accuracy), `mse` (mean
    over the users) and `control` (the score of the control with the same combination and seed,
    which has no merge method and no uplink; NaN if there is none).
    """
    cells = completed(results).groupby(CELL, as_index=False, dropna=False)
    cells = cells.agg(
        size=("size", "first"), score=("normalised_accuracy", "mean"), mse=("mse_mean", "first")
    )
    pair = ["combination", "seed"]
    controls = cells[cells["protection"] == "control"].groupby(pair, as_index=False)
    cells = cells.merge(controls.agg(control=("score", "mean")), on=pair, how="left")
    order = [*SETTING, "size", "combination", "scenario", "draw", "seed", "protection"]
    return in_order(cells, order)[["combination", "size", *CELL[1:], "score", "mse", "control"]]


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per (rule, axis, level, scenario, protection).

    Columns: these five, `mean` and `std` (sample standard deviation, NaN for one cell) of the
    average normalised accuracy over combinations, draws and seeds, `cells` (their number),
    `control` (mean of the controls with the same combinations and seeds, NaN without any) and `mse`
    (mean over the cells).
    """
    keys = [*SETTING, "scenario", "protection"]
    rows = cell_scores(results).groupby(keys, as_index=False, dropna=False)
    rows = rows.agg(
        mean=("score", "mean"),
        std=("score", "std"),
        cells=("score", "size"),
        control=("control", "mean"),
        mse=("mse", "mean"),
    )
    return in_order(rows, keys)


def spread(results: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the spread of the average normalised accuracy over the cells of each group.

    Columns: rule, axis, level and `by`, then `mean`, `std` (sample standard deviation, NaN for one
    cell), `min`, `max` and `count` (number of cells).
    """
    keys = [*SETTING, *by]
    scores = cell_scores(results).groupby(keys, dropna=False)["score"]
    return in_order(scores.agg(["mean", "std", "min", "max", "count"]).reset_index(), keys)


def by_size(results: pd.DataFrame) -> pd.DataFrame:
    """Return `spread` by (size, scenario, protection), `size` being the number of tasks fused."""
    return spread(results, ["size", "scenario", "protection"])


def base_by_size(results: pd.DataFrame) -> pd.Series:
    """Return the base model's own average normalised accuracy, by the number of tasks.

    It is that of the pretrained model under the tasks' frozen heads: no fusion, no uplink. Mean
    over a combination's tasks, then over the combinations.
    """
    own = results["base_accuracy"] / results["finetuned_accuracy"]
    keys = ["size", "combination"]
    return own.groupby([results[key] for key in keys]).mean().groupby("size").mean()


def per_task(results: pd.DataFrame) -> pd.DataFrame:
    """Return means over the cells that hold a task, by (rule, axis, level, scenario, protection).

    Columns: these five, `task`, `accuracy`, `base_accuracy`, `finetuned_accuracy`,
    `normalised_accuracy` and `cells` (their number).
    """
    keys = [*SETTING, "task", "scenario", "protection"]
    rows = (
        completed(results)
        .groupby(keys, as_index=False, dropna=False)
        .agg(
            accuracy=("accuracy", "mean"),
            base_accuracy=("base_accuracy", "mean"),
            finetuned_accuracy=("finetuned_accuracy", "mean"),
            normalised_accuracy=("normalised_accuracy", "mean"),
            cells=("accuracy", "size"),
        )
    )
    return in_order(rows, keys)
