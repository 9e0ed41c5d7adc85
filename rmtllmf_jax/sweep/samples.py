"""The samples of every task that a sweep evaluates and realigns on."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int64

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.data.task_data import Rows, TaskData
from rmtllmf_jax.evaluation.batches import Batch, EvaluationSet, evaluation_set, even_batch
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.sweep.settings import Settings


def evaluation_sets(
    rows: list[Rows], samples: int, settings: Settings, batch_size: int | None = None
) -> list[EvaluationSet]:
    """Return each task's seeded subset on the device.

    Batches have `batch_size` images, unless given the even one (`even_batch`) of these subsets
    within the settings' `eval_batch_size`.
    """
    chosen = [evaluation_subset(len(part), samples, settings.seed) for part in rows]
    size = batch_size or even_batch([len(each) for each in chosen], settings.eval_batch_size)
    subsets = [part.take(each) for part, each in zip(rows, chosen, strict=True)]
    return [evaluation_set(subset.images, subset.labels, size) for subset in subsets]


def shot_pool(
    data: tuple[TaskData, ...], per_class: int, seed: int, image_size: int
) -> tuple[Batch, list[Int64[np.ndarray, " shots"]]]:
    """Return the few-shot samples of all tasks as one pool, and each task's places in it.

    A task with too few training images has no place. Images come at `image_size` pixels, whatever
    size the tasks are kept in.

    **Raises:** `InputError` of the last task if none has enough.
    """
    parts, lacking = [], None
    for task in data:
        rows = np.arange(0)
        try:
            rows = task.shots(per_class, seed)
        except InputError as error:
            lacking = error
        parts.append(task.train.take(rows))
    if lacking is not None and not any(map(len, parts)):
        raise lacking
    ends = np.cumsum([len(part) for part in parts])
    places = [np.arange(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
    images = jnp.concatenate([resize(part.images, image_size) for part in parts if len(part)])
    owner = jnp.asarray(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
    labels = jnp.asarray(np.concatenate([part.labels for part in parts]))
    return Batch({"images": images, "task": owner}, labels, jnp.ones(len(owner))), places
