"""Labelled samples in batches of one size, the last one padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real, Shaped, UInt8

from rmtllmf_jax import fusion
from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.data.samples import SampleArrays, Samples
from rmtllmf_jax.models.images import resize
from rmtllmf_jax.models.shared import SharedModel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What a model is given, and what it should answer; also batches stacked along leading axes.

    Images are `inputs["images"]`. With samples from several tasks, `inputs["task"]` is the index of
    the head, for a batch or for each sample, among the stacked ones.
    """

    inputs: dict[str, Shaped[Array, "..."]]
    target: Shaped[Array, "*batch"]
    """Labels."""
    weight: Real[Array, "*batch"]
    """What each target counts; 0 for padding."""

    def prepared(self, model: SharedModel) -> Batch:
        """Return the batch in the form that a model takes, see `SharedModel.prepared`."""
        return replace(self, inputs=model.prepared(self.inputs))

    def at_size(self, image_size: int) -> Batch:
        """Return the batch with images resized on the device to another size in pixels."""
        images = self.inputs["images"]
        if images.shape[1:3] == (image_size, image_size):
            return self  # even a call that does nothing costs time, beside a small model
        return replace(self, inputs=self.inputs | {"images": resize(images, image_size)})


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled samples on the device, cut into batches of one size, the last one padded."""

    batches: tuple[Batch, ...]
    count: int
    """Samples without the padding."""


def even_batch(counts: Sequence[int], most: int, multiple: int = 1) -> int:
    """Return a batch size of at most `most` that needs little padding for sets of these sizes.

    One size serves all sets, hence one compiled program. It is `most`, or a size that cuts one of
    the sets into equal parts: the largest whose rows, padding included, are within one percent of
    the minimum. A multiple of `multiple` (devices that share a batch), as `most` must be.

    >>> even_batch([200, 200], 128), even_batch([12], 128), even_batch([8041, 1880], 128)
    (100, 12, 128)
    """
    parts = [-(-count // -(-count // most)) for count in counts]
    sizes = {most, *(-(-part // multiple) * multiple for part in parts)}
    rows = {size: sum(-(-count // size) * size for count in counts) for size in sizes}
    return max(size for size in sizes if rows[size] <= 1.01 * min(rows.values()))


def evaluation_set(
    images: UInt8[np.ndarray, "n size size channels"],
    labels: Int[np.ndarray, " n"],
    batch_size: int,
) -> EvaluationSet:
    """Cut samples into batches of one size on the device.

    **Raises:** `InputError` if there is no sample.
    """
    weight = np.ones(len(labels), np.float32)
    return cut(SampleArrays({"images": images}, labels, weight), batch_size)


def cut(arrays: SampleArrays, batch_size: int) -> EvaluationSet:
    """Cut samples, images or texts, into batches of one size on the device.

    **Raises:** `InputError` if there is no sample.
    """
    count = len(arrays.target)
    if count == 0:
        raise InputError("there are no samples to evaluate on.")
    return EvaluationSet(tuple(in_batches(arrays, batch_size)), count)


def in_batches(arrays: SampleArrays, batch_size: int) -> Iterator[Batch]:
    """Yield samples in batches of one size on the device, the last one padded."""
    for start in range(0, len(arrays.target), batch_size):
        part = slice(start, start + batch_size)
        yield padded_batch(
            SampleArrays(
                {name: each[part] for name, each in arrays.inputs.items()},
                arrays.target[part],
                arrays.weight[part],
            ),
            batch_size,
        )


def batches_of(samples: Samples, batch_size: int) -> Iterator[Batch]:
    """Yield samples in batches of one size, the last one padded; they are read one by one."""
    for start in range(0, len(samples), batch_size):
        rows = np.arange(start, min(start + batch_size, len(samples)))
        yield padded_batch(samples.take(rows).arrays(), batch_size)


def padded_batch(arrays: SampleArrays, batch_size: int) -> Batch:
    """Return samples on the device as one batch; those that pad it have weight 0."""
    missing = batch_size - len(arrays.target)

    def padded(rows: np.ndarray) -> Array:
        if missing:
            rows = np.pad(rows, ((0, missing), *((0, 0),) * (rows.ndim - 1)))
        return jnp.asarray(rows)

    inputs = {name: padded(rows) for name, rows in arrays.inputs.items()}
    return Batch(inputs, padded(arrays.target), padded(arrays.weight))


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
    - `task_weights`: the weight of each task: ``1 / T`` by default, the mean over tasks. With ``1 /
      (T a_t)``, a_t the score of the task's own fine-tuned model, the objective is the normalised
      score. A task with weight 0 is left out and costs nothing.

    **Raises:** `InputError` if no task counts, or if the sizes of batches differ.
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

    return fusion.stack([weighted(task, batch) for task, batch in batches])
