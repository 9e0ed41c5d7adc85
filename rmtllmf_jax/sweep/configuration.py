"""A configuration from a run folder's results table, rebuilt by the program that computed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import pandas as pd
from jaxtyping import PyTree

from rmtllmf_jax.common.errors import InputError, require_known
from rmtllmf_jax.defences.protection import parse_protection
from rmtllmf_jax.evaluation.metrics import Metric
from rmtllmf_jax.fusion.rules import parse_method
from rmtllmf_jax.runs.folder import RESULTS, RUN
from rmtllmf_jax.runs.run import Run
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.layout import Layout, one_device
from rmtllmf_jax.sweep.settings import Settings

NAMES = ("combination", "scenario", "axis", "level", "draw", "seed", "protection", "rule")
"""The columns that tell configurations apart."""


def find_configuration(run: Run, wanted: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows of the one configuration in a run's results with all of these values.

    **Arguments:**

    - `wanted`: column of `NAMES` -> value as text.

    **Raises:** `InputError` if there is no table, an unknown column, or not exactly one such
    configuration; it then lists the columns in which the matches differ, or the existing values.
    """
    path = run.path / RESULTS
    if not path.exists():
        raise InputError(f"{path}: no such file; run `rmtllmf sweep --out {run.path}` first.")
    rows = pd.read_parquet(path)
    for name, value in wanted.items():
        column = rows[require_known("column of --configuration", name, NAMES)]
        fits = column.map(lambda each, value=value: _is(each, value))
        if not fits.any():
            there = ", ".join(map(str, dict.fromkeys(column)))
            raise InputError(f"--configuration {name}={value}: there is {there}.")
        rows = rows[fits]
    several = [name for name in NAMES if rows[name].nunique(dropna=False) > 1]
    if several:
        choices = "; ".join(
            f"{name}: {', '.join(map(str, dict.fromkeys(rows[name])))}" for name in several
        )
        raise InputError(f"--configuration leaves several open, give also one each of {choices}.")
    return rows


def _is(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return value == text
    try:
        return float(text) == float(value)
    except ValueError:
        return False


def engine_of(run: Run, metric: Metric | None = None) -> Engine:
    """Return the engine of a run, with the settings of its last sweep, if there was one.

    `metric` replaces that of the sweep.

    Open the run with the tasks of that sweep: they determine which user sends which vector.

    **Raises:** `InputError` for settings that this version cannot read.
    """
    made = run.provenance
    settings, layout = Settings(), one_device()
    try:
        if made is not None:
            settings = Settings.of(made["settings"])
            at_once = int(made["layout"]["cells_at_once"])
            layout = Layout((jax.local_devices()[0],), at_once)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{run.path / RUN}: not the settings of this version ({error}); sweep again."
        ) from error
    return Engine(run.inputs(), replace(settings, metric=metric or settings.metric), layout)


def job_of(rows: pd.DataFrame) -> Job:
    """Return the job of a configuration from its rows of the results table."""
    row = rows.iloc[0]
    level = None if pd.isna(row["level"]) else float(row["level"])
    cell = Cell(
        tuple(row["combination"].split("+")),
        row["scenario"],
        int(row["draw"]),
        int(row["seed"]),
        parse_protection(row["protection"]),
        parse_method(row.get("method", row["rule"])),
        row["axis"],
        level,
    )
    return Job(cell, float(row["scale"]))


def model_of(engine: Engine, job: Job) -> PyTree:
    """Return the parameters of one configuration, bitwise equal to those the sweep evaluated."""
    return jax.tree.map(lambda leaf: leaf[0], engine.models([job]))
