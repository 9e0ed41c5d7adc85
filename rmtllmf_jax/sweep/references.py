"""The references of the cells: the base model, and each task's own fine-tuned model."""

from __future__ import annotations

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.common.values import described
from rmtllmf_jax.sweep.job import Job, base_job, finetuned_job
from rmtllmf_jax.sweep.stage import Stage


def reference_jobs(stage: Stage) -> list[Job]:
    """Return the references from which results, and the rule `validation`, are computed."""
    tasks = stage.engine.inputs.tasks
    jobs = [base_job(tasks, "test"), *(finetuned_job(task, "test") for task in tasks)]
    if stage.engine.settings.scale == "validation":
        jobs += [finetuned_job(task, "validation") for task in tasks]
    return jobs


def finetuned_score(stage: Stage, task: str, split: str = "test") -> float:
    """Return the score by which scores on a task are normalised.

    **Raises:** `InputError` if it is zero, which allows no comparison.
    """
    score = stage.score(finetuned_job(task, split), task)
    if score == 0:
        raise InputError(
            f"the fine-tuned model of {task} has {described(stage.engine.metric)} 0 on the {split} "
            "samples: fine-tune it longer, or evaluate on more samples."
        )
    return score
