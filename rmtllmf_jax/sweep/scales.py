"""The method and coefficient for every size: by a rule, a number, or the best on validation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.fusion.rules import Method, OneOf, methods_of
from rmtllmf_jax.sweep.grid import Cell, Combination, Grid
from rmtllmf_jax.sweep.job import Job
from rmtllmf_jax.sweep.references import finetuned_score
from rmtllmf_jax.sweep.settings import Settings
from rmtllmf_jax.sweep.stage import Stage


class Chosen(NamedTuple):
    """How the combinations of a size are merged."""

    method: Method
    scale: float


Scales = dict[tuple[Method | OneOf, int], Chosen]
"""By what the grid has as rule, and number of tasks."""


def require_chosen(grid: Grid, scale: str) -> None:
    """Check that the rule `validation` chooses what the grid leaves open.

    **Raises:** `InputError` for options with several values under another scale.
    """
    for rule in grid.rules:
        if isinstance(rule, OneOf) and scale != "validation":
            raise InputError(
                f"the merge method {described(rule)} leaves its options to be chosen on validation "
                "samples: add --scale validation, or name each of its values as a method of its "
                "own."
            )


def validation_jobs(grid: Grid) -> list[Job]:
    """Return the merges that the rule `validation` compares: noiseless and unprotected."""
    return [
        _validation_job(combination, method, scale)
        for rule in grid.rules
        for method in methods_of(rule)
        for combination in grid.combinations
        for scale in fusion.candidate_scales(method)
    ]


def _validation_job(combination: Combination, method: Method, scale: float) -> Job:
    return Job(Cell(combination, "clean", 0, 0, "none", method), scale, "validation")


def scales_by_size(stage: Stage, grid: Grid) -> tuple[Scales, list[dict[str, Any]]]:
    """Return the choice for every rule and size, and the validation curve if one is measured.

    The rule `validation` takes the method and the coefficient with the highest mean normalised
    score of the noiseless, unprotected merges of that size on validation samples. The test split
    plays no part. The other rules of the coefficient are those of `fusion.scale_of`.
    """
    settings = stage.engine.settings
    sizes = sorted({len(combination) for combination in grid.combinations})
    if settings.scale == "validation":
        stage.complete(validation_jobs(grid), "scale on validation")
        curve = _curve(stage, grid)
        return {(rule, n): _best(curve, rule, n) for rule in grid.rules for n in sizes}, curve
    require_chosen(grid, settings.scale)
    return {(rule, n): _given(settings, rule, n) for rule in grid.rules for n in sizes}, []


def _given(settings: Settings, rule: Any, size: int) -> Chosen:
    return Chosen(rule, fusion.scale_of(settings.scale, size, rule))


def _best(curve: list[dict[str, Any]], rule: Method | OneOf, size: int) -> Chosen:
    """Return the choice with the best mean over the combinations of one size, the first of ties."""

    def mean(chosen: Chosen) -> float:
        wanted = (described(rule), described(chosen.method), size, chosen.scale)
        columns = ("rule", "method", "size", "scale")
        rows = [row for row in curve if tuple(row[name] for name in columns) == wanted]
        return float(np.mean([row["normalised"] for row in rows]))

    candidates = [
        Chosen(one, scale) for one in methods_of(rule) for scale in fusion.candidate_scales(one)
    ]
    return max(candidates, key=mean)


def _curve(stage: Stage, grid: Grid) -> list[dict[str, Any]]:
    curve = []
    for rule in grid.rules:
        for job in validation_jobs(replace(grid, rules=(rule,))):
            combination = job.cell.combination
            ratios = [
                stage.engine.metric.normalised(
                    stage.score(job, task), finetuned_score(stage, task, job.split)
                )
                for task in combination
            ]
            curve.append(
                {
                    "combination": "+".join(combination),
                    "size": len(combination),
                    "rule": described(rule),
                    "method": described(job.cell.rule),
                    "scale": job.scale,
                    "normalised": float(np.mean(ratios)),
                }
            )
    return curve
