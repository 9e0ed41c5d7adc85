"""The samples of every task that a sweep evaluates and realigns on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int64

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.samples import Samples, Task
from rmtllmf_jax.data.splits import evaluation_subset
from rmtllmf_jax.evaluation.batches import Batch, EvaluationSet, cut, even_batch, padded_batch
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.sweep.settings import Settings


def evaluation_sets(
    rows: Sequence[Samples], samples: int, settings: Settings, batch_size: int | None = None
) -> list[EvaluationSet]:
    """Return each task's seeded subset on the device.

    Batches have `batch_size` samples; by default the even size (`even_batch`) for these subsets
    within the settings' `eval_batch_size`.
    """
    chosen = [evaluation_subset(len(part), samples, settings.seed) for part in rows]
    size = batch_size or even_batch([len(each) for each in chosen], settings.eval_batch_size)
    return [cut(part.take(each).arrays(), size) for part, each in zip(rows, chosen, strict=True)]


def shot_pool(
    data: Sequence[Task], shots: int, seed: int, model: SharedModel
) -> tuple[Batch, list[Int64[np.ndarray, " shots"]]]:
    """Return the few-shot samples of all tasks as one pool, and each task's places in it.

    A task with too few training samples has no place. Samples are in the form that the model takes
    (`SharedModel.prepared`), whatever size images are stored in; `inputs["task"]` is the place of
    their task.

    **Raises:** `InputError` for the last task if none has enough.
    """
    found: list[Samples | None] = []
    lacking = None
    for task in data:
        try:
            found.append(task.few(shots, seed))
        except InputError as error:
            found.append(None)
            lacking = error
    parts = [(place, part) for place, part in enumerate(found) if part is not None]
    if lacking is not None and not parts:
        raise lacking
    sizes = [0 if part is None else len(part) for part in found]
    ends = np.cumsum(sizes)
    places = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    batches = [_of_task(part, place, model) for place, part in parts]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *batches), places


def _of_task(part: Samples, place: int, model: SharedModel) -> Batch:
    batch = padded_batch(part.arrays(), len(part)).prepared(model)
    task = jnp.full(len(part), place)
    return replace(batch, inputs=batch.inputs | {"task": task})
