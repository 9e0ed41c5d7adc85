"""The results averaged: over a cell's tasks first, then over cells.

Every accuracy is a fraction. Rows stand in the order of `order.py`, whatever the order of the file.
"""

from __future__ import annotations

import pandas as pd

from rmtllmf_jax.report.order import in_order
from rmtllmf_jax.report.reading import CELL, read_cosines, read_results

__all__ = ["by_size", "cell_scores", "per_task", "read_cosines", "read_results", "summary"]


def cell_scores(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row a cell: the average normalised accuracy over its tasks.

    Columns: `combination`, `size`, `scenario`, `draw`, `seed`, `protection`, `score` (the average
    normalised accuracy), `mse` (mean over the users) and `control` (the score of the control with
    the same combination and seed; NaN where there is none).
    """
    cells = results.groupby(CELL, as_index=False).agg(
        size=("size", "first"), score=("normalised_accuracy", "mean"), mse=("mse_mean", "first")
    )
    pair = ["combination", "seed"]
    controls = cells[cells["protection"] == "control"].groupby(pair, as_index=False)
    cells = cells.merge(controls.agg(control=("score", "mean")), on=pair, how="left")
    order = ["size", "combination", "scenario", "draw", "seed", "protection"]
    names = ["combination", "size", *CELL[1:], "score", "mse", "control"]
    return in_order(cells, order)[names]


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (scenario, protection).

    Columns: `scenario`, `protection`, `mean` and `std` (sample standard deviation, NaN for one
    cell) of the average normalised accuracy over combinations, draws and seeds, `cells` (their
    number), `control` (mean of the controls with the same combinations and seeds, NaN without any)
    and `mse` (mean over the cells).
    """
    groups = cell_scores(results).groupby(["scenario", "protection"], as_index=False)
    rows = groups.agg(
        mean=("score", "mean"),
        std=("score", "std"),
        cells=("score", "size"),
        control=("control", "mean"),
        mse=("mse", "mean"),
    )
    return in_order(rows, ["scenario", "protection"])


def by_size(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (size, scenario, protection), `size` being the number of tasks fused.

    Columns: `size`, `scenario`, `protection`, then `mean`, `std` (sample standard deviation, NaN
    for one cell), `min` and `max` of the average normalised accuracy, and `count` (number of
    cells).
    """
    keys = ["size", "scenario", "protection"]
    scores = cell_scores(results).groupby(keys)["score"]
    return in_order(scores.agg(["mean", "std", "min", "max", "count"]).reset_index(), keys)


def per_task(results: pd.DataFrame) -> pd.DataFrame:
    """Return one row a (task, scenario, protection): means over the cells that hold the task.

    Columns: `task`, `scenario`, `protection`, `accuracy`, `base_accuracy`, `finetuned_accuracy`,
    `normalised_accuracy` and `cells` (their number).
    """
    keys = ["task", "scenario", "protection"]
    rows = results.groupby(keys, as_index=False).agg(
        accuracy=("accuracy", "mean"),
        base_accuracy=("base_accuracy", "mean"),
        finetuned_accuracy=("finetuned_accuracy", "mean"),
        normalised_accuracy=("normalised_accuracy", "mean"),
        cells=("accuracy", "size"),
    )
    return in_order(rows, keys)
