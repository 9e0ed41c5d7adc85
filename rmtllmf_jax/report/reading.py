"""A run's two tables, read and checked before a single number is averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rmtllmf_jax.common.errors import InputError

CELL = ["combination", "scenario", "draw", "seed", "protection"]
"""The columns that name a cell; with `task` they name a row of the results."""

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
    """Read `results.parquet`: one row a (combination, scenario, draw, seed, protection, task).

    Columns are those of `RESULTS`; accuracies are fractions. Other columns are kept.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice, an accuracy that is not finite, or a cell without all of its tasks.
    """
    results = _read(path, RESULTS)
    accuracies = ["accuracy", "finetuned_accuracy", "base_accuracy", "normalised_accuracy"]
    _check_rows(path, results, [*CELL, "task"], accuracies)
    tasks = results.groupby(CELL)["task"].transform("size")
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

    Columns are those of `COSINES`; `cosine` is between two received task vectors.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice or a cosine that is not finite.
    """
    cosines = _read(path, COSINES)
    keys = ["scenario", "draw", "seed", "protection", "task_a", "task_b"]
    _check_rows(path, cosines, keys, ["cosine"])
    return cosines


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
    for name, kind in columns.items():
        try:
            if kind is not float and frame[name].isna().any():
                raise ValueError("a value is missing")
            frame[name] = frame[name].astype(kind)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: column {name} is not {kind.__name__} ({error}).") from error
    return frame


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
