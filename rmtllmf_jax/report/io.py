"""Reads a run's tables and `run.json`; tables are checked before any number is averaged.

Every column name that a sweep writes and a report needs is defined here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from rmtllmf_jax.common.credentials import without_credentials
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.files import read_json

CELL = ["combination", "scenario", "axis", "level", "draw", "seed", "rule", "protection"]
"""The columns that identify a cell; with `task` they identify a row of the results."""

DEFAULTS: dict[str, Any] = {"rule": "task_arithmetic", "axis": "", "level": np.nan}
"""Values for tables of older sweeps, which lack these columns."""

RENAMED = {
    "accuracy": "score",
    "base_accuracy": "base_score",
    "finetuned_accuracy": "finetuned_score",
    "normalised_accuracy": "normalised",
}
"""Columns that older sweeps wrote under another name."""

RESULTS = ["combination", "size", "scenario", "draw", "seed", "protection", "task", "scale"]
RESULTS += ["kappa", "mse", "mse_mean", "score", "finetuned_score", "base_score", "normalised"]
SCALES = ["combination", "size", "scale", "normalised"]
COSINES = ["scenario", "draw", "seed", "protection", "task_a", "task_b", "cosine"]
SAID = ["scenario", "protection", "task", "number", "given", "text"]

_NATS = {"negative_log_likelihood": 1.0, "bits_per_byte": math.log(2)}
"""Metrics that are logarithms of likelihoods, each with its unit in nats."""

_NAMES = {*CELL, "task", "task_a", "task_b"} - {"level", "draw", "seed"}
_WHOLE = {"size", "draw", "seed", "number"}
_TEXTS = {"given", "text"}
_MAY_BE_NAN = {"kappa", "mse", "mse_mean", "uses"}
_NO_LESS = ["draw", "seed", "scale", "kappa", "mse", "mse_mean", "normalised", "uses"]
_LIMITS = {
    **dict.fromkeys(_NO_LESS, (0.0, np.inf)),
    **dict.fromkeys(["score", "finetuned_score", "base_score"], (0.0, 1.0)),
    "size": (1.0, np.inf),
    "cosine": (-1.001, 1.001),  # rounded in float32
}
"""Least and largest value of a column; all must be finite, except in `_MAY_BE_NAN`."""

_NO_VALUE = re.compile(r'[<>"$]|\s\s|^\s|\s$')
_NO_NAME = re.compile(rf"{_NO_VALUE.pattern}|[/\\]")
"""Not allowed in names: it has a meaning in paths or pages. The options of a rule or a protection
may hold patterns of paths."""

_SHOWN = (
    "command", "commit", "machine", "device", "platform", "seconds", "model", "model_hash",
    "checkpoint", "preset", "order", "error_model", "transport", "image_size", "recipe",
    "tasks", "sizes", "scenarios", "protections", "rules", "axis", "levels", "draws", "seed",
    "seeds", "metric", "scale", "scales", "kappa", "c0_db", "shots", "realign", "eval_samples",
    "validation_samples", "versions",
)  # fmt: skip


def read_results(path: Path) -> pd.DataFrame:
    """Read `results.parquet`: one row per cell (the columns `CELL`) and task.

    Columns are those of `RESULTS` and `DEFAULTS`, see `completed`; scores are fractions, except
    for a `metric` other than accuracy. Other columns are kept.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice, a number that is not finite or out of range, a normalised score
    that is not the score over the fine-tuned one, a name with forbidden characters, an axis without
    a level (or a level without an axis), or a cell without all of its tasks.
    """
    keys = [*CELL, "task"]
    table = _read(path, RESULTS, keys)
    expected = normalised(table, "score")
    own = [
        f"+{task}+" in f"+{tasks}+"
        for task, tasks in zip(table["task"], table["combination"], strict=True)
    ]
    there = table.groupby(CELL, dropna=False)["task"].transform("size")
    for right, said in (
        (
            (table["axis"] == "") != np.isfinite(table["level"]),
            "axis is {axis!r} and level {level}; expected a name and a number, or '' and NaN",
        ),
        (
            np.isclose(table["normalised"], expected, rtol=1e-6),
            "normalised is {normalised} where score / finetuned_score is {score} / "
            "{finetuned_score}; expected the quotient"
            + (", in nats the exponential of the difference" if metric_of(table) in _NATS else ""),
        ),
        (own, "the task {task} is none of the combination"),
        (
            there == table["size"],
            "the cell has {there} tasks, expected {size}. Let the sweep finish it, or remove it",
        ),
    ):
        _require(path, table.assign(there=there), keys, np.asarray(right), said)
    return table


def read_cosines(path: Path) -> pd.DataFrame:
    """Read `cosines.parquet`: one row per (scenario, draw, seed, protection, task_a, task_b).

    Columns are those of `COSINES`, and `DEFAULTS` filled in; `cosine` is between two received task
    vectors.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice or an invalid cosine.
    """
    return _read(path, COSINES, [*CELL[1:], "task_a", "task_b"])


def read_scales(path: Path) -> pd.DataFrame:
    """Read `scales.parquet`: the validation curve, one row per (combination, scale).

    Columns are those of `SCALES`, `rule` and `method`, filled in where a table lacks them. Of a
    rule whose options were chosen too, only the method that is best for a size is kept.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, holds a row twice or an invalid score.
    """
    scales = _read(path, SCALES, ["rule", "method", "combination", "scale"])
    scales = scales.drop(columns=["axis", "level"])
    keys = ["rule", "size", "method"]
    means = scales.groupby([*keys, "scale"], sort=False)["normalised"].mean()
    chosen = {best[:3] for best in means.groupby(["rule", "size"]).idxmax()}
    return scales[[row in chosen for row in scales[keys].itertuples(index=False, name=None)]]


def read_said(path: Path) -> pd.DataFrame:
    """Read `said.parquet`: one text per model (rule, scenario, protection), task and prompt.

    Columns are those of `SAID`, and `rule` filled in; `number` counts the prompts of a task,
    `given` is the prompt, and `text` the model's continuation.

    **Raises:** `InputError` that names the file if it is missing, truncated or empty, lacks
    columns, or holds a row twice or values that are not texts.
    """
    return _read(path, SAID, ["rule", *SAID[:4]])


def lower_is_better(results: pd.DataFrame) -> bool:
    """Whether scores are losses, as cross-entropy is; most are normalised by the inverse."""
    if metric_of(results) == "accuracy":
        return False
    if metric_of(results) in _NATS:
        return True
    return bool(np.allclose(results["normalised"] * results["score"], results["finetuned_score"]))


def normalised(results: pd.DataFrame, score: str) -> pd.Series:
    """Return the column `score` relative to the fine-tuned models': 1 is as good, more is better.

    The quotient or its inverse; for scores in nats or bits, the exponential of the difference.
    """
    own, tuned = results[score], results["finetuned_score"]
    if (nats := _NATS.get(metric_of(results))) is not None:
        return np.exp(nats * (tuned - own))
    quotient = own / tuned.replace(0, np.nan)
    return 1 / quotient if lower_is_better(results) else quotient


def metric_of(results: pd.DataFrame) -> str:
    """Return the name of the metric of a table; older tables have accuracies."""
    named = results["metric"].unique() if "metric" in results else []
    return " and ".join(named) or "accuracy"


def completed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a sweep's table with current names (`RENAMED`) and all columns of `DEFAULTS`."""
    table = table.rename(columns=RENAMED)
    return table.assign(**{name: value for name, value in DEFAULTS.items() if name not in table})


def _read(path: Path, columns: list[str], keys: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a table written by a sweep.")
    try:
        table = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path}: not a whole parquet file ({error}). Run the sweep again."
        ) from error
    frame = completed(table.to_pandas(ignore_metadata=True))
    if missing := [name for name in columns if name not in frame]:
        raise InputError(
            f"{path}: lacks the columns {', '.join(missing)}; it has "
            f"{', '.join(table.column_names) or 'none'}."
        )
    if frame.empty:
        raise InputError(f"{path}: no rows. Expected at least one finished cell.")
    for name in (*columns, *DEFAULTS):
        kind = str if name in _NAMES | _TEXTS else int if name in _WHOLE else float
        if wrong := _unlike(frame[name], kind):
            raise InputError(f"{path}: column {name} is not {kind.__name__} ({wrong}).")
        frame[name] = frame[name].astype(kind)
    if "method" in keys and "method" not in frame:
        frame = frame.assign(method=frame["rule"])
    _require(path, frame, keys, ~frame.duplicated(keys).to_numpy(), "a row is there more than once")
    scores = ("score", "finetuned_score", "base_score") if metric_of(frame) != "accuracy" else ()
    limits = _LIMITS | dict.fromkeys(scores, (-np.inf, np.inf))
    for name in (name for name in limits if name in frame):
        least, most = limits[name]
        value = frame[name]
        fits = np.isfinite(value) & value.between(least, most)
        fits |= value.isna() if name in _MAY_BE_NAN else False
        between = f">= {least:g}" if most == np.inf else f"from {least:g} to {most:g}"
        said = f"{name} is {{{name}}}; expected a finite number {between}"
        _require(path, frame, keys, fits.to_numpy(), said)
    return frame


def _unlike(column: pd.Series, kind: type) -> str:
    """Return why a column is not of a type; empty if it is."""
    if kind is str:
        for value in column.unique():
            if not isinstance(value, str):
                return "a value is missing or not text"
            if column.name in _TEXTS:
                continue
            wrong = _NO_VALUE if column.name in ("rule", "protection") else _NO_NAME
            if wrong.search(value) or not value.isprintable():
                return f"{value!r} is not allowed as a name: it could act as a path or as markup"
    elif not is_numeric_dtype(column) or is_bool_dtype(column):
        return f"its values are {column.dtype}"
    elif kind is int and not (column % 1 == 0).all():
        return "a value is missing or not a whole number"
    return ""


def _require(
    path: Path, frame: pd.DataFrame, keys: list[str], right: np.ndarray, said: str
) -> None:
    """Refuse rows that are not `right`; `said` is filled in with the first of them."""
    if not right.all():
        row = frame[~right].iloc[0]
        named = ", ".join(f"{key}={row[key]}" for key in keys)
        raise InputError(
            f"{path}: {said.format_map(row)} ({(~right).sum()} rows, the first: {named})."
        )


def read_configuration(run: Path) -> dict[str, Any]:
    """Read `run.json` of a run folder, without credentials in URLs; empty if there is none.

    **Raises:** `InputError` if it is not a JSON object.
    """
    path = run / "run.json"
    configuration = read_json(path) if path.exists() else {}
    if not isinstance(configuration, dict):
        raise InputError(f"{path}: expected a JSON object, got {configuration!r}.")
    shown: dict[str, Any] = json.loads(without_credentials(json.dumps(configuration)))
    return shown


def settings(run: Mapping[str, Any], above: str = "") -> Iterator[list[str]]:
    """Yield the path and the value of every setting that matters to a reader."""
    for key, value in run.items():
        if key in _SHOWN:
            yield [above + key, value if isinstance(value, str) else json.dumps(value)]
        elif isinstance(value, Mapping):
            yield from settings(value, f"{above}{key}.")


def find(run: Mapping[str, Any], key: str) -> Any:
    """Return the first value with that name at any depth, `None` if there is none.

    Keys of a level come before deeper ones.
    """
    if run.get(key) is not None:
        return run[key]
    below = (find(value, key) for value in run.values() if isinstance(value, Mapping))
    return next((value for value in below if value is not None), None)
