"""Run a grid: every cell once, whatever stops in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rmtllmf_jax.resilience import PROTECTIONS
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.job import Job, base_job
from rmtllmf_jax.sweep.parts import Parts
from rmtllmf_jax.sweep.references import finetuned_accuracy, reference_jobs
from rmtllmf_jax.sweep.scales import Scales, scales_by_size
from rmtllmf_jax.sweep.stage import Stage
from rmtllmf_jax.sweep.trackers import Tracker

Rows = list[dict[str, Any]]


def run_grid(
    engine: Engine, grid: Grid, folder: Path | str, tracker: Tracker | None = None
) -> dict[str, Rows]:
    """Return the tables of a grid, computing what the folder does not hold.

    **Arguments:**

    - `folder`: of this configuration (inputs and settings) alone; finished work is kept there, in
      `cells` and `cosines`, where all processes of a sweep write.
    - `tracker`: is told of the speed.

    **Returns:** rows of `results` (one a cell and task), `cosines` (between received task
    vectors) and, under the scale rule `validation`, `scales` (its curve). In a process other than
    the first: nothing, once its share is done.
    """
    cells = grid.cells()
    mse = {cell: engine.uplinks.mse(cell) for cell in cells}  # refuses what has no channel
    with Stage(engine, f"{folder}/cells", tracker) as stage:
        stage.complete(reference_jobs(stage), "references")
        scales, curve = scales_by_size(stage, grid)
        jobs = [Job(cell, _scale(cell, scales)) for cell in cells]
        stage.complete(jobs, "sweep")
        if engine.layout.process:
            return {}
        results = [row for job in jobs for row in _rows(stage, job, mse[job.cell])]
    with Parts(f"{folder}/cosines") as parts:
        tables = {"results": results, "cosines": cosine_rows(engine, grid, parts)}
    return tables | ({"scales": curve} if curve else {})


def _scale(cell: Cell, scales: Scales) -> float:
    fuse = PROTECTIONS[cell.protection].fuse
    return scales[cell.rule, len(cell.combination)] if fuse else 0.0


def _rows(stage: Stage, job: Job, mse: np.ndarray) -> Rows:
    engine, cell = stage.engine, job.cell
    users = [engine.inputs.tasks.index(task) for task in cell.combination]
    rows = []
    for task, user in zip(cell.combination, users, strict=True):
        finetuned = finetuned_accuracy(stage, task)
        accuracy = stage.accuracy(job, task)
        rows.append(
            {
                "combination": "+".join(cell.combination),
                "size": len(users),
                "scenario": cell.scenario,
                "axis": cell.axis,
                "level": float("nan") if cell.level is None else cell.level,
                "draw": cell.draw,
                "seed": cell.seed,
                "protection": cell.protection,
                "rule": cell.rule,
                "task": task,
                "scale": job.scale,
                "kappa": float(engine.uplinks.kappa[user]),
                "mse": float(mse[user]),
                "mse_mean": float(np.mean(mse[users])),
                "error_model": engine.settings.error_model,
                "accuracy": accuracy,
                "finetuned_accuracy": finetuned,
                "base_accuracy": stage.accuracy(base_job(engine.inputs.tasks, "test"), task),
                "normalised_accuracy": accuracy / finetuned,
            }
        )
    return rows
