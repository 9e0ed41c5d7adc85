"""The table of an unfinished sweep, from its store alone: no model is needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.evaluation.known import get_metric
from rmtllmf_jax.fusion.rules import methods_of, parse_method
from rmtllmf_jax.sweep.parts import read_parts

_CELL = ["combination", "scenario", "axis", "level", "draw", "seed", "rule", "protection", "task"]

_CONTROL = "(control$|from_base)"
"""Protections that stand under the scenario clean, whether or not the grid has it."""

_UPLINK = {"kappa", "mse", "mse_mean", "uses"}
"""What parts of older programs lack; NaN stands for it."""


def results_so_far(store: str, configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of `results.parquet` for the finished cells of a grid.

    **Arguments:**

    - `store`: the folder or URL of a configuration.
    - `configuration`: as in `run.json`; its grid and error model are used.

    **Raises:** `InputError` if nothing is finished, or there are cells with several merging
    coefficients or options (the grid grew under the scale rule `validation`).
    """
    cells = read_parts(f"{store}/cells")
    tested = cells[cells["split"] == "test"]
    own = {
        kind: tested[tested["kind"] == kind].set_index("task")["score"]
        for kind in ("base", "finetuned")
    }
    grid = configuration["grid"]
    rule_of = {each: rule for rule in grid["rules"] for each in _methods(rule)}
    tested = tested.assign(method=tested["rule"], rule=tested["rule"].map(rule_of))
    rows = tested[(tested["kind"] == "merged") & _of_grid(tested, grid)]
    rows = rows[rows["task"].isin(own["base"].index) & rows["task"].isin(own["finetuned"].index)]
    if rows.empty:
        raise InputError(f"{store}: no cell of this sweep is finished yet; wait for one.")
    if rows.duplicated(_CELL).any():
        raise InputError(
            f"{store}: cells with several merging coefficients or options; which ones are this "
            "sweep's is known at its end."
        )
    metric = get_metric(configuration["settings"].get("metric", "accuracy"))
    tuned = rows["task"].map(own["finetuned"])
    rows = rows.assign(**dict.fromkeys(_UPLINK - set(rows), float("nan"))).assign(
        error_model=configuration["settings"]["error_model"],
        base_score=rows["task"].map(own["base"]),
        finetuned_score=tuned,
        normalised=list(map(metric.normalised, rows["score"], tuned)),
    )
    found: list[dict[str, Any]] = rows.drop(
        columns=["cell", "kind", "split", "sum", "weight"]
    ).to_dict("records")
    return found


def _methods(rule: str) -> list[str]:
    """Return the methods that a rule of a grid chooses from, or only the rule itself."""
    if "[" not in rule:
        return [rule]  # perhaps of a class that is registered nowhere
    return [described(method) for method in methods_of(parse_method(rule))]


def _of_grid(rows: pd.DataFrame, grid: Mapping[str, Any]) -> pd.Series:
    """Return which rows belong to a grid, given as in JSON."""
    axis = grid["axis"]
    return (
        rows["combination"].isin(["+".join(names) for names in grid["combinations"]])
        & (rows["scenario"].isin(grid["scenarios"]) | rows["protection"].str.match(_CONTROL))
        & rows["protection"].isin(grid["protections"])
        & rows["rule"].notna()
        & (rows["draw"] < grid["draws"])
        & (
            (rows["draw"] < grid.get("repaired_draws", grid["draws"]))
            | ~rows["protection"].isin(grid.get("repaired", ()))
        )
        & (rows["seed"] < grid["seeds"])
        & (
            ((rows["axis"] == axis["name"]) & rows["level"].isin(axis["levels"]))
            | ((rows["axis"] == "") & ((rows["scenario"] == "clean") | (axis["name"] == "")))
        )
    )
