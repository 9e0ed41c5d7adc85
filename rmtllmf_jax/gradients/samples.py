"""Labelled samples of several tasks in one array of batches, each sample with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
from jaxtyping import Array, Float

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.batches import Batch, EvaluationSet, stacked


def samples_of(
    sets: Sequence[EvaluationSet],
    image_size: int,
    task_weights: Float[Array, " tasks"] | None = None,
) -> Batch:
    """Return the evaluation sets of the tasks as batches stacked in one, each with its `task`.

    The weights of all samples sum to those of the tasks: the weighted sum of a metric is an average
    over tasks.

    **Arguments:**

    - `sets`: one per task, in the order of the heads, with batches of one size.
    - `image_size`: height and width in pixels that the model takes.
    - `task_weights`: what a task counts: ``1 / T`` unless given, the mean over tasks. With ``1 /
      (T a_t)``, a_t the score of the task's own fine-tuned model, the objective is the normalised
      score. A task of weight 0 is left out and costs nothing.

    **Raises:** `InputError` if there is no task that counts, or if the sizes of batches differ.
    """
    if task_weights is None:
        task_weights = jnp.full(len(sets), 1 / max(len(sets), 1))
    chosen = [task for task in range(len(sets)) if float(task_weights[task])]
    batches = [(task, batch) for task in chosen for batch in sets[task].batches]
    sizes = sorted({len(batch.weight) for _, batch in batches})
    if len(sizes) != 1:
        raise InputError(
            "expected at least one task that counts, and evaluation batches of one size; got "
            f"{len(chosen)} such tasks with batches of {sizes}."
        )

    def weighted(task: int, batch: Batch) -> Batch:
        inputs = batch.at_size(image_size).inputs | {"task": jnp.array(task)}
        return replace(
            batch, inputs=inputs, weight=batch.weight * (task_weights[task] / sets[task].count)
        )

    return stacked([weighted(task, batch) for task, batch in batches])
