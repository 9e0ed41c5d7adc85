"""Reads and checks a run's tables before any number is averaged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from rmtllmf_jax.common.errors import InputError

CELL = ["combination", "scenario", "axis", "level", "draw", "seed", "rule", "protection"]
"""The columns that identify a cell; with `task` they identify a row of the results."""

DEFAULTS: dict[str, Any] = {"rule": "task_arithmetic", "axis": "", "level": np.nan}
"""Values for tables of older sweeps, which lack these columns."""

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

_INFINITY = float("inf")
_LIMITS = {
    "size": (1, _INFINITY),
    "draw": (0, _INFINITY),
    "seed": (0, _INFINITY),
    "scale": (0, _INFINITY),
    "kappa": (0, _INFINITY),
    "mse": (0, _INFINITY),
    "mse_mean": (0, _INFINITY),
    "accuracy": (0, 1),
    "finetuned_accuracy": (0, 1),
    "base_accuracy": (0, 1),
    "normalised_accuracy": (0, _INFINITY),
    "uses": (0, _INFINITY),
    "cosine": (-1.001, 1.001),  # rounded in float32
}
"""Least and largest value of a column; all must be finite, except in `_MAY_BE_NAN`."""
_MAY_BE_NAN = ("kappa", "mse", "mse_mean", "uses")

_NO_NAME = re.compile(r'[<>"$/\\]|\s\s|^\s|\s$')
_NO_VALUE = re.compile(r'[<>"$]|\s\s|^\s|\s$')
"""Not allowed in names: it has a meaning in paths or pages. The options of a rule or a protection
may hold patterns of paths."""


def read_results(path: Path) -> pd.DataFrame:
    """Read `results.parquet`: one row per cell (the columns `CELL`) and task.

    Columns are those of `RESULTS` and `DEFAULTS`, the latter filled in where a table lacks them;
    accuracies are fractions. Other columns are kept.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice, a number that is not finite or out of range, a normalised accuracy
    that is not accuracy over fine-tuned accuracy, a name with forbidden characters, an axis without
    a level (or a level without an axis), or a cell without all of its tasks.
    """
    results = completed(_read(path, RESULTS))
    _check_levels(path, results)
    _check_rows(path, results, [*CELL, "task"])
    _check_normalised(path, results)
    _check_tasks(path, results)
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
    """Read `cosines.parquet`: one row per (scenario, draw, seed, protection, task_a, task_b).

    Columns are those of `COSINES`, and `DEFAULTS` filled in; `cosine` is between two received task
    vectors.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice or an invalid cosine.
    """
    cosines = completed(_read(path, COSINES))
    keys = ["scenario", "axis", "level", "draw", "seed", "rule", "protection", "task_a", "task_b"]
    _check_rows(path, cosines, keys)
    return cosines


def read_scales(path: Path) -> pd.DataFrame:
    """Read `scales.parquet`: the validation curve, one row per (combination, scale).

    Columns are those of `SCALES`, `rule` and `method`, filled in where a table lacks them. Of a
    rule whose options were chosen too, only the method that is best for a size is kept.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice or an invalid accuracy.
    """
    scales = completed(_read(path, SCALES)).drop(columns=["axis", "level"])
    if "method" not in scales:
        scales = scales.assign(method=scales["rule"])
    _check_rows(path, scales, ["rule", "method", "combination", "scale"])
    keys = ["rule", "size", "method"]
    means = scales.groupby([*keys, "scale"], sort=False)["normalised_accuracy"].mean()
    chosen = {best[:3] for best in means.groupby(["rule", "size"]).idxmax()}
    return scales[[row in chosen for row in scales[keys].itertuples(index=False, name=None)]]


def completed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the columns `DEFAULTS`, missing ones filled in."""
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
        if wrong := _unlike(frame[name], kind):
            raise InputError(f"{path}: column {name} is not {kind.__name__} ({wrong}).")
        frame[name] = frame[name].astype(kind)
    return frame


def _unlike(column: pd.Series, kind: type) -> str:
    """Return why a column is not of a type; empty if it is."""
    if kind is str:
        for value in column.unique():
            if not isinstance(value, str):
                return "a value is missing or not text"
            wrong = _NO_VALUE if column.name in ("rule", "protection") else _NO_NAME
            if wrong.search(value) or not value.isprintable():
                return f"{value!r} is not allowed as a name: it could act as a path or as markup"
    elif not is_numeric_dtype(column) or is_bool_dtype(column):
        return f"its values are {column.dtype}"
    elif kind is int and not (column % 1 == 0).all():
        return "a value is missing or not a whole number"
    return ""


def _check_levels(path: Path, results: pd.DataFrame) -> None:
    wrong = results[(results["axis"] == "") == np.isfinite(results["level"])]
    if len(wrong):
        row = wrong.iloc[0]
        raise InputError(
            f"{path}: axis is {row['axis']!r} and level {row['level']} in {len(wrong)} rows; "
            "expected a name and a number, or an empty name and NaN."
        )


def _check_rows(path: Path, frame: pd.DataFrame, keys: list[str]) -> None:
    twice = frame[frame.duplicated(keys)]
    if len(twice):
        raise InputError(f"{path}: the row {_named(twice.iloc[0], keys)} is there more than once.")
    for name in (name for name in _LIMITS if name in frame):
        least, most = _LIMITS[name]
        value = frame[name]
        fits = np.isfinite(value) & value.between(least, most)
        bad = frame[~(fits | value.isna() if name in _MAY_BE_NAN else fits)]
        if len(bad):
            row = bad.iloc[0]
            between = f">= {least:g}" if most == _INFINITY else f"from {least:g} to {most:g}"
            raise InputError(
                f"{path}: {name} is {row[name]} in {len(bad)} rows, the first {_named(row, keys)}; "
                f"expected a finite number {between}."
            )


def _check_normalised(path: Path, results: pd.DataFrame) -> None:
    expected = results["accuracy"] / results["finetuned_accuracy"].replace(0, np.nan)
    bad = results[~np.isclose(results["normalised_accuracy"], expected, rtol=1e-6)]
    if len(bad):
        row = bad.iloc[0]
        raise InputError(
            f"{path}: normalised_accuracy is {row['normalised_accuracy']} in {len(bad)} rows where "
            f"accuracy / finetuned_accuracy is {row['accuracy']} / {row['finetuned_accuracy']}, "
            f"the first {_named(row, [*CELL, 'task'])}; expected the quotient."
        )


def _check_tasks(path: Path, results: pd.DataFrame) -> None:
    pairs = zip(results["combination"], results["task"], strict=True)
    other = results[[f"+{task}+" not in f"+{combination}+" for combination, task in pairs]]
    if len(other):
        row = other.iloc[0]
        raise InputError(
            f"{path}: the task {row['task']} is none of the combination {row['combination']}, "
            f"in {len(other)} rows."
        )


def _named(row: pd.Series, keys: list[str]) -> str:
    return ", ".join(f"{key}={row[key]}" for key in keys)
