"""Accuracy, counted batch by batch with one compiled program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree, UInt8

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.images import resize


@partial(
    jax.tree_util.register_dataclass, data_fields=["images", "labels", "valid"], meta_fields=[]
)
@dataclass(frozen=True)
class EvaluationBatch:
    """A batch of fixed size; `valid` marks the samples that are not padding."""

    images: UInt8[Array, "batch size size channels"]
    labels: Int[Array, " batch"]
    valid: Bool[Array, " batch"]

    def at_size(self, image_size: int) -> EvaluationBatch:
        """Return the batch with images of another size in pixels, resized on the device."""
        if self.images.shape[1:3] == (image_size, image_size):
            return self  # even a call that does nothing costs time, beside a small model
        return replace(self, images=resize(self.images, image_size))


def count_correct(
    params: PyTree, heads: Head, task: Int[Array, ""], batch: EvaluationBatch, *, backbone: Backbone
) -> Int[Array, " 2"]:
    """Return how many valid samples of a batch are classified correctly, and how many not at all.

    The latter have logits that are not finite: the model is broken, and its decisions are chance.

    **Arguments:**

    - `heads`: stacked over tasks and padded; `task`: which of them to use. Both are data, so one
      compiled program serves all tasks.
    """
    head = jax.tree.map(lambda leaf: leaf[task], heads)
    logits = head(backbone.features(params, batch.images))
    right = jnp.argmax(logits, axis=-1) == batch.labels
    broken = ~jnp.isfinite(jnp.max(logits, axis=-1))  # max propagates NaN
    return jnp.stack([jnp.sum(right & batch.valid), jnp.sum(broken & batch.valid)])


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled samples on the device, cut into batches of one size, the last one padded."""

    batches: tuple[EvaluationBatch, ...]
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
    if len(labels) == 0:
        raise InputError("there is no sample to evaluate on.")
    batches = []
    for start in range(0, len(labels), batch_size):
        rows = labels[start : start + batch_size]
        missing = batch_size - len(rows)
        padding = ((0, missing), (0, 0), (0, 0), (0, 0))
        batches.append(
            EvaluationBatch(
                jnp.asarray(np.pad(images[start : start + batch_size], padding)),
                jnp.asarray(np.pad(rows, (0, missing))),
                jnp.arange(batch_size) < len(rows),
            )
        )
    return EvaluationSet(tuple(batches), len(labels))
