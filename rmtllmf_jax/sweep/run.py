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
    scales, curve = scales_by_size(runner, grid.combinations)
    mse = {scenario: runner.mse(scenario, grid.draws) for scenario in grid.scenarios}
    cells = grid.cells()
    results: Rows = []
    done = sum(cell.name in runner.journal for cell in cells)
    with progress_bar("sweep", len(cells), done) as advance:
        for cell in cells:
            values = mse[cell.scenario][cell.draw]
            scale = scales[len(cell.combination)]
            if cell.name not in runner.journal:
                model = runner.protected(cell, values, scale)
                found = {task: runner.accuracy(model, task, "test") for task in cell.combination}
                runner.journal.add(cell.name, found)
                advance(1)
            results += _rows(runner, cell, values, scale)
    tables = {"results": results, "cosines": cosine_rows(runner, grid)}
    return tables | ({"scales": curve} if curve else {})


def _rows(runner: Runner, cell: Cell, mse: Float[np.ndarray, " users"], scale: float) -> Rows:
    users = [runner.inputs.tasks.index(task) for task in cell.combination]
    fused = PROTECTIONS[cell.protection].fuse
    rows = []
    for task, user in zip(cell.combination, users, strict=True):
        finetuned = runner.finetuned_accuracy(task, "test")
        accuracy = runner.journal[cell.name][task]
        rows.append(
            {
                "combination": "+".join(cell.combination),
                "size": len(users),
                "scenario": cell.scenario,
                "draw": cell.draw,
                "seed": cell.seed,
                "protection": cell.protection,
                "task": task,
                "scale": scale if fused else 0.0,
                "kappa": float(runner.kappa[user]),
                "mse": float(mse[user]),
                "mse_mean": float(np.mean(mse[users])),
                "accuracy": accuracy,
                "finetuned_accuracy": finetuned,
                "base_accuracy": runner.reference(task, "base", "test"),
                "normalised_accuracy": accuracy / finetuned,
            }
        )
    return rows
