"""Run a grid: every cell once, whatever interruptions occur."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from rmtllmf_jax.common.files import content_hash
from rmtllmf_jax.common.values import described
from rmtllmf_jax.defences.protection import protection_name, repairs_of, split
from rmtllmf_jax.fusion.rules import methods_of
from rmtllmf_jax.runs.inputs import SweepInputs
from rmtllmf_jax.sweep.cosines import cosine_rows
from rmtllmf_jax.sweep.engine import Engine
from rmtllmf_jax.sweep.grid import Cell, Grid
from rmtllmf_jax.sweep.job import Job, base_job
from rmtllmf_jax.sweep.needs import require_looked_at
from rmtllmf_jax.sweep.parts import CellStore
from rmtllmf_jax.sweep.program import program
from rmtllmf_jax.sweep.references import finetuned_score, reference_jobs
from rmtllmf_jax.sweep.scales import Scales, require_chosen, scales_by_size
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.stage import Stage
from rmtllmf_jax.sweep.trackers import Tracker

Rows = list[dict[str, Any]]

_log = logging.getLogger(__name__)


def store_key(inputs: SweepInputs, settings: Settings) -> str:
    """Return the name of the store of a sweep's finished cells: a hash of all they depend on."""
    return content_hash({"inputs": inputs.fingerprint, "settings": settings.key()})


def run_grid(
    engine: Engine, grid: Grid, folder: Path | str, tracker: Tracker | None = None
) -> dict[str, Rows]:
    """Return the tables of a grid, computing what the folder does not hold.

    **Arguments:**

    - `folder`: for this configuration (inputs and settings) only; finished work is kept there, in
      `cells` and `cosines`, where all processes of a sweep write.
    - `tracker`: receives the speed.

    **Returns:** rows of `results` (one per cell and task), `cosines` (between received task
    vectors), `programs` (what computed how many of the cells) and, under the scale rule
    `validation`, `scales` (its curve). In a process other than the first: nothing, once its share
    is done.

    **Raises:** `InputError` if the grid does not fit the preset of the settings or the task
    vectors, before anything is computed.
    """
    grid.require_fitting(engine.settings, len(engine.inputs.tasks))
    require_chosen(grid, engine.settings.scale)
    require_looked_at([m for rule in grid.rules for m in methods_of(rule)], engine.inputs.model)
    engine.settings.root(grid.seeds - 1)
    cells = grid.cells()
    engine.uplinks.require_fitting(cells)
    with Stage(engine, f"{folder}/cells", tracker) as stage:
        stage.complete(reference_jobs(stage), "references")
        scales, curve = scales_by_size(stage, grid)
        jobs = [_job(cell, scales) for cell in cells]
        stage.complete(jobs, "sweep")
        if engine.layout.process:
            return {}
        results = [
            row
            for cell, job in zip(cells, jobs, strict=True)
            for row in _rows(stage, job, described(cell.rule))
        ]
        programs = stage.parts.programs(job.hash for job in jobs)
    with CellStore(f"{folder}/cosines", program=program(engine.layout.devices[0])) as parts:
        tables = {"results": results, "cosines": cosine_rows(engine, grid, parts)}
    _tell_mixture(programs)
    tables["programs"] = programs
    return tables | ({"scales": curve} if curve else {})


def _tell_mixture(programs: Rows) -> None:
    if len(programs) > 1:
        each = "; ".join(
            f"{found['cells']:,} by rmtllmf-jax {found['rmtllmf-jax']}, jax {found['jax']} on "
            f"{found['platform']} ({found['device']})"
            for found in programs
        )
        _log.warning(
            "the table mixes cells of several programs, which differ by rounding or more: %s. For "
            "cells of one program alone take another --store.",
            each,
        )


def _job(cell: Cell, scales: Scales) -> Job:
    """Return a cell's job, with the chosen method where the grid leaves several open."""
    method, scale = scales[cell.rule, len(cell.combination)]
    fuse = split(repairs_of(cell.protection)).fuse
    return Job(replace(cell, rule=method), scale if fuse else 0.0)


def _rows(stage: Stage, job: Job, rule: str) -> Rows:
    engine, cell = stage.engine, job.cell
    rows = []
    for task in cell.combination:
        finetuned = finetuned_score(stage, task)
        found = stage.row(job, task)
        rows.append(
            {
                "combination": "+".join(cell.combination),
                "size": len(cell.combination),
                "scenario": cell.scenario,
                "axis": cell.axis,
                "level": float("nan") if cell.level is None else cell.level,
                "draw": cell.draw,
                "seed": cell.seed,
                "protection": protection_name(cell.protection),
                "rule": rule,
                "method": described(cell.rule),
                "task": task,
                "scale": job.scale,
                **{name: found[name] for name in ("kappa", "mse", "mse_mean", "uses")},
                "error_model": engine.settings.error_model,
                "metric": found["metric"],
                "score": found["score"],
                "base_score": stage.score(base_job(engine.inputs.tasks, "test"), task),
                "finetuned_score": finetuned,
                "normalised": engine.metric.normalised(found["score"], finetuned),
            }
        )
    return rows
