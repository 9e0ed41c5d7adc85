"""The merging coefficient of every size: a rule, a number, or the best on the validation split."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmtllmf_jax import fusion
from rmtllmf_jax.fusion.rules import averages, get_rule
from rmtllmf_jax.sweep.grid import Cell, Combination, Grid
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.references import finetuned_accuracy
from rmtllmf_jax.sweep.settings import VALIDATION_SCALES, Settings
from rmtllmf_jax.sweep.stage import Stage

Scales = dict[tuple[str, int], float]
"""By merge rule and number of tasks."""


def validation_jobs(grid: Grid) -> list[Job]:
    """Return the merges that the rule `validation` compares: noiseless and unprotected."""
    return [
        _validation_job(combination, rule, scale)
        for rule in grid.rules
        for combination in grid.combinations
        for scale in VALIDATION_SCALES
    ]


def _validation_job(combination: Combination, rule: str, scale: float) -> Job:
    return Job(Cell(combination, "clean", 0, 0, "none", rule), scale, "validation")


def scales_by_size(stage: Stage, grid: Grid) -> tuple[Scales, list[dict[str, Any]]]:
    """Return the coefficient for every rule and size, and the validation curve if one is measured.

    The rule `validation` takes the coefficient with the highest mean normalised accuracy of the
    noiseless, unprotected merges of that size on validation samples. The test split plays no part.
    Under `power-law` merge rules that average have 1, as in `rmtllmf fuse`.
    """
    settings = stage.engine.settings
    sizes = sorted({len(combination) for combination in grid.combinations})
    if settings.scale == "validation":
        stage.complete(validation_jobs(grid), "scale on validation")
        curve = _curve(stage, grid)
        return {(rule, n): _best(curve, rule, n) for rule in grid.rules for n in sizes}, curve
    return {(rule, n): _given(settings, rule, n) for rule in grid.rules for n in sizes}, []


def _given(settings: Settings, rule: str, size: int) -> float:
    if settings.scale == "power-law" and averages(rule, get_rule(rule).options()):
        return 1.0
    return fusion.scale_of(settings.scale, size)


def _best(curve: list[dict[str, Any]], rule: str, size: int) -> float:
    """Return the coefficient with the best mean over the combinations of one size."""

    def mean(scale: float) -> float:
        wanted = (rule, size, scale)
        rows = [row for row in curve if (row["rule"], row["size"], row["scale"]) == wanted]
        return float(np.mean([row["normalised_accuracy"] for row in rows]))

    return max(VALIDATION_SCALES, key=mean)


def _curve(stage: Stage, grid: Grid) -> list[dict[str, Any]]:
    curve = []
    for job in validation_jobs(grid):
        combination = job.cell.combination
        ratios = [
            stage.accuracy(job, task) / finetuned_accuracy(stage, task, job.split)
            for task in combination
        ]
        curve.append(
            {
                "combination": "+".join(combination),
                "size": len(combination),
                "rule": job.cell.rule,
                "scale": job.scale,
                "normalised_accuracy": float(np.mean(ratios)),
            }
        )
    return curve
