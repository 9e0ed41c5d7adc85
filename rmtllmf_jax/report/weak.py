"""Tasks that fine-tuning failed to teach: normalising by them says nothing about merging."""

from __future__ import annotations

import pandas as pd

LEAST_GAIN = 0.02
"""A fine-tuned model has to be this much better (in accuracy) than the head on the base model."""


def weak_tasks(results: pd.DataFrame) -> list[str]:
    """Return the tasks whose fine-tuned model gains less than `LEAST_GAIN`, sorted."""
    alone = _alone(results)
    weak = alone["finetuned_accuracy"] - alone["base_accuracy"] < LEAST_GAIN
    return sorted(alone.index[weak])


def without_weak_tasks(results: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the other tasks; a cell's average is then over these."""
    return results[~results["task"].isin(weak_tasks(results))]


def caveat(results: pd.DataFrame) -> str | None:
    """Return a sentence that names the weak tasks and their accuracies, `None` without any."""
    weak = weak_tasks(results)
    if not weak:
        return None
    alone = _alone(results)
    named = ", ".join(
        f"{task} ({alone['finetuned_accuracy'][task]:.1%} fine-tuned, "
        f"{alone['base_accuracy'][task]:.1%} head on the base)"
        for task in weak
    )
    return (
        f"Fine-tuning did not teach {named}: normalised accuracy of such a task is noise divided "
        "by noise, so every average is given without it too."
    )


def _alone(results: pd.DataFrame) -> pd.DataFrame:
    return results.groupby("task")[["base_accuracy", "finetuned_accuracy"]].mean()
