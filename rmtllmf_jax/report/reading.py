"""A run's tables, read and checked before a single number is averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError

CELL = ["combination", "scenario", "axis", "level", "draw", "seed", "rule", "protection"]
"""The columns that name a cell; with `task` they name a row of the results."""

DEFAULTS: dict[str, Any] = {"rule": "task_arithmetic", "axis": "", "level": np.nan}
"""What tables of older sweeps, which lack these columns, were made with."""

RESULTS: dict[str, type] = {
    "combination": str,
    "size": int,
    "scenario": str,
    "draw": int,
    "seed": int,
    "protection": str,
    "task": str,
    "scale": float,
    "kappa": float,
    "mse": float,
    "mse_mean": float,
    "accuracy": float,
    "finetuned_accuracy": float,
    "base_accuracy": float,
    "normalised_accuracy": float,
}
SCALES: dict[str, type] = {
    "combination": str,
    "size": int,
    "scale": float,
    "normalised_accuracy": float,
}
COSINES: dict[str, type] = {
    "scenario": str,
    "draw": int,
    "seed": int,
    "protection": str,
    "task_a": str,
    "task_b": str,
    "cosine": float,
}


def read_results(path: Path) -> pd.DataFrame:
    """Read `results.parquet`: one row a cell (the columns `CELL`) and task.

    Columns are those of `RESULTS` and `DEFAULTS`, which are filled in where a table lacks them;
    accuracies are fractions. Other columns are kept.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice, an accuracy that is not finite, an axis without a level (or a level
    without an axis), or a cell without all of its tasks.
    """
    results = completed(_read(path, RESULTS))
    _check_levels(path, results)
    accuracies = ["accuracy", "finetuned_accuracy", "base_accuracy", "normalised_accuracy"]
    _check_rows(path, results, [*CELL, "task"], accuracies)
    tasks = results.groupby(CELL, dropna=False)["task"].transform("size")
    short = results[tasks != results["size"]]
    if len(short):
        row = short.iloc[0]
        raise InputError(
            f"{path}: the cell {_named(row, CELL)} has {tasks[short.index[0]]} tasks, expected "
            f"{row['size']}. Let the sweep finish it, or remove its rows."
        )
    return results


def read_cosines(path: Path) -> pd.DataFrame:
    """Read `cosines.parquet`: one row a (scenario, draw, seed, protection, task_a, task_b).

    Columns are those of `COSINES`, and `DEFAULTS` filled in; `cosine` is between two received task
    vectors.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice or a cosine that is not finite.
    """
    cosines = completed(_read(path, COSINES))
    keys = ["scenario", "axis", "level", "draw", "seed", "rule", "protection", "task_a", "task_b"]
    _check_rows(path, cosines, keys, ["cosine"])
    return cosines


def read_scales(path: Path) -> pd.DataFrame:
    """Read `scales.parquet`: the validation curve, one row a (combination, scale).

    Columns are those of `SCALES` and `rule`, filled in where a table lacks it.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice or an accuracy that is not finite.
    """
    scales = completed(_read(path, SCALES)).drop(columns=["axis", "level"])
    _check_rows(path, scales, ["rule", "combination", "scale"], ["normalised_accuracy"])
    return scales


def completed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the columns `DEFAULTS`, those that it lacks filled in."""
    return table.assign(**{name: value for name, value in DEFAULTS.items() if name not in table})


def _read(path: Path, columns: dict[str, type]) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a table written by a sweep.")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a whole parquet file ({error}). Run the sweep again."
        ) from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(table.column_names) or 'none'}."
        )
    if not table.num_rows:
        raise InputError(f"{path}: no rows. Expected at least one finished cell.")
    frame = table.to_pandas(ignore_metadata=True)
    optional = {"rule": str, "axis": str, "level": float}
    for name, kind in (columns | {n: k for n, k in optional.items() if n in frame}).items():
        try:
            if kind is not float and frame[name].isna().any():
                raise ValueError("a value is missing")
            frame[name] = frame[name].astype(kind)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: column {name} is not {kind.__name__} ({error}).") from error
    return frame


def _check_levels(path: Path, results: pd.DataFrame) -> None:
    wrong = results[(results["axis"] == "") != results["level"].isna()]
    if len(wrong):
        row = wrong.iloc[0]
        raise InputError(
            f"{path}: axis is {row['axis']!r} and level {row['level']} in {len(wrong)} rows; "
            "expected a name and a number, or an empty name and NaN."
        )


def _check_rows(path: Path, frame: pd.DataFrame, keys: list[str], finite: list[str]) -> None:
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        raise InputError(f"{path}: the row {_named(twice.iloc[0], keys)} is there more than once.")
    for name in finite:
        bad = frame[~np.isfinite(frame[name])]
        if len(bad):
            row = bad.iloc[0]
            raise InputError(
                f"{path}: {name} is {row[name]} in {len(bad)} rows, the first {_named(row, keys)}; "
                "expected a finite number."
            )


def _named(row: pd.Series, keys: list[str]) -> str:
    return ", ".join(f"{key}={row[key]}" for key in keys)
