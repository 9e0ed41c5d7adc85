"""Labelled samples of several tasks in one array of batches, each sample with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.evaluation.accuracy import EvaluationSet


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Samples:
    """Batches of one shape, or one of them; the weighted sum of scores is an average over tasks."""

    images: UInt8[Array, "*batches batch size size channels"]
    labels: Int[Array, "*batches batch"]
    task: Int[Array, "*batches"]
    """Which head a batch is read under."""
    weights: Float[Array, "*batches batch"]
    """Zero for padding; all of them sum to that of the tasks."""


def samples_of(
    sets: Sequence[EvaluationSet],
    image_size: int,
    task_weights: Float[Array, " tasks"] | None = None,
) -> Samples:
    """Return the evaluation sets of the tasks as one array of batches.

    **Arguments:**

    - `sets`: one per task, in the order of the heads, with batches of one size.
    - `image_size`: height and width in pixels that the model takes.
    - `task_weights`: what a task counts: ``1 / T`` unless given, the mean over tasks. With ``1 /
      (T a_t)``, a_t the accuracy of the task's own fine-tuned model, the objective is the
      normalised accuracy. A task of weight 0 is left out and costs nothing.

    **Raises:** `InputError` if there is no task that counts, or if the sizes of batches differ.
    """
    if task_weights is None:
        task_weights = jnp.full(len(sets), 1 / max(len(sets), 1))
    chosen = [task for task in range(len(sets)) if float(task_weights[task])]
    batches = [(task, batch) for task in chosen for batch in sets[task].batches]
    sizes = sorted({batch.valid.shape[0] for _, batch in batches})
    if len(sizes) != 1:
        raise InputError(
            "expected at least one task that counts, and evaluation batches of one size; got "
            f"{len(chosen)} such tasks with batches of {sizes}."
        )
    share = [task_weights[task] / sets[task].count for task, _ in batches]
    return Samples(
        jnp.stack([batch.at_size(image_size).images for _, batch in batches]),
        jnp.stack([batch.labels for _, batch in batches]),
        jnp.array([task for task, _ in batches]),
        jnp.stack([batch.valid * s for (_, batch), s in zip(batches, share, strict=True)]),
    )
