"""The merging coefficient of every size: a rule, a number, or the best on the validation split."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmtllmf_jax import fusion
from rmtllmf_jax.common.progress import progress_bar
from rmtllmf_jax.sweep.grid import Combination
from rmtllmf_jax.sweep.runner import Runner
from rmtllmf_jax.sweep.settings import VALIDATION_SCALES


def scales_by_size(
    runner: Runner, combinations: tuple[Combination, ...]
) -> tuple[dict[int, float], list[dict[str, Any]]]:
    """Return the coefficient for every size, and the validation curve if one was measured.

    The rule `validation` takes the coefficient with the highest mean normalised accuracy of the
    noiseless, unprotected merges of that size on validation samples. The test split plays no part.
    """
    sizes = sorted({len(combination) for combination in combinations})
    fixed = runner.settings.fixed_scale()
    if fixed is not None:
        return dict.fromkeys(sizes, fixed), []
    if runner.settings.scale == "power-law":
        return {size: fusion.power_law(size) for size in sizes}, []
    curve = _validation_curve(runner, combinations)
    return {size: _best(curve, size) for size in sizes}, curve


def _best(curve: list[dict[str, Any]], size: int) -> float:
    """Return the coefficient with the best mean over the combinations of one size."""

    def mean(scale: float) -> float:
        wanted = (size, scale)
        rows = [row for row in curve if (row["size"], row["scale"]) == wanted]
        return float(np.mean([row["normalised_accuracy"] for row in rows]))

    return max(VALIDATION_SCALES, key=mean)


def _validation_curve(
    runner: Runner, combinations: tuple[Combination, ...]
) -> list[dict[str, Any]]:
    curve = []
    silent, errors = np.zeros(len(runner.inputs.tasks)), runner.error_model("clean", 0)
    key = runner.noise_key(0, 0, "scale")  # multiplies zero
    names = [
        (combination, scale, f"scale/{'+'.join(combination)}/{scale}")
        for combination in combinations
        for scale in VALIDATION_SCALES
    ]
    done = sum(name in runner.journal for *_, name in names)
    with progress_bar("scale on validation", len(names), done) as advance:
        for combination, scale, name in names:
            if name not in runner.journal:
                model = runner.merge(combination, silent, errors, scale, key, reload=False)
                ratios = [
                    runner.accuracy(model, task, "validation")
                    / runner.finetuned_accuracy(task, "validation")
                    for task in combination
                ]
                runner.journal.add(name, float(np.mean(ratios)))
                advance(1)
            curve.append(
                {
                    "combination": "+".join(combination),
                    "size": len(combination),
                    "scale": scale,
                    "normalised_accuracy": runner.journal[name],
                }
            )
    return curve
