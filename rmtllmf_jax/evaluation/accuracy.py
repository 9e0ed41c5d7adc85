"""Accuracy, counted batch by batch with one compiled program."""

from __future__ import annotations

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
        return replace(self, images=resize(self.images, image_size))


def count_correct(
    params: PyTree, heads: Head, task: Int[Array, ""], batch: EvaluationBatch, *, backbone: Backbone
) -> Int[Array, ""]:
    """Return how many valid samples of a batch the model classifies right.

    **Arguments:**

    - `heads`: stacked over tasks and padded; `task`: which of them to use. Both are data, so one
      compiled program serves all tasks.
    """
    head = jax.tree.map(lambda leaf: leaf[task], heads)
    guess = jnp.argmax(head(backbone.features(params, batch.images)), axis=-1)
    return jnp.sum((guess == batch.labels) & batch.valid)


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled samples on the device, cut into batches of one size, the last one padded."""

    batches: tuple[EvaluationBatch, ...]
    count: int
    """Samples without the padding."""


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
