"""Run a grid: every cell once, whatever stops in between."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.resilience import PROTECTIONS
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.runner import Runner
from rmtllmf_jax.sweep.scales import scales_by_size

Rows = list[dict[str, Any]]


def run_grid(runner: Runner, grid: Grid) -> dict[str, Rows]:
    """Return the tables of a grid, computing what the runner's journal does not hold.

    **Returns:** rows of `results` (one a cell and task), `cosines` (between received task
    vectors) and, under the scale rule `validation`, `scales` (its curve).
    """
    mse = {scenario: runner.mse(scenario, grid.draws) for scenario in grid.scenarios}
    scales, curve = scales_by_size(runner, grid.combinations)
    work = [(cell, _scale(cell, scales)) for cell in grid.cells()]
    results: Rows = []
    done = sum(_name(cell, scale) in runner.journal for cell, scale in work)
    with progress_bar("sweep", len(work), done) as advance:
        for cell, scale in work:
            values = mse[cell.scenario][cell.draw]
            if _name(cell, scale) not in runner.journal:
                model = runner.protected(cell, values, scale)
                found = {task: runner.accuracy(model, task, "test") for task in cell.combination}
                runner.journal.add(_name(cell, scale), found)
                advance(1)
            results += _rows(runner, cell, values, scale)
    tables = {"results": results, "cosines": cosine_rows(runner, grid)}
    return tables | ({"scales": curve} if curve else {})


def _scale(cell: Cell, scales: dict[int, float]) -> float:
    return scales[len(cell.combination)] if PROTECTIONS[cell.protection].fuse else 0.0


def _name(cell: Cell, scale: float) -> str:
    """Return what a cell is recorded under.

    With the scale, as the rule `validation` may choose another one when the grid grows.
    """
    return f"{cell.name}/{scale}"


def _rows(runner: Runner, cell: Cell, mse: Float[np.ndarray, " users"], scale: float) -> Rows:
    users = [runner.inputs.tasks.index(task) for task in cell.combination]
    rows = []
    for task, user in zip(cell.combination, users, strict=True):
        finetuned = runner.finetuned_accuracy(task, "test")
        accuracy = runner.journal[_name(cell, scale)][task]
        rows.append(
            {
                "combination": "+".join(cell.combination),
                "size": len(users),
                "scenario": cell.scenario,
                "draw": cell.draw,
                "seed": cell.seed,
                "protection": cell.protection,
                "task": task,
                "scale": scale,
                "kappa": float(runner.kappa[user]),
                "mse": float(mse[user]),
                "mse_mean": float(np.mean(mse[users])),
                "error_model": runner.settings.error_model,
                "accuracy": accuracy,
                "finetuned_accuracy": finetuned,
                "base_accuracy": runner.reference(task, "base", "test"),
                "normalised_accuracy": accuracy / finetuned,
            }
        )
    return rows
