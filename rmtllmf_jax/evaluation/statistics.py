"""Statistics of a task for merge methods, from a few of its images, without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from rmtllmf_jax.fusion.rules import prediction_entropy
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head, logits_by_task

_BATCH = 32


@partial(jax.jit, static_argnames="backbone")
def fisher_information(
    params: PyTree,
    head: Head,
    images: UInt8[Array, "n size size channels"],
    key: Key[Array, ""],
    *,
    backbone: Backbone,
) -> PyTree:
    """Return the diagonal Fisher information of a model, a tree like its parameters.

    The mean over images of the squared gradient of the log-likelihood of a label drawn from the
    model's own prediction. Images are taken one by one, as the square of a mean would be something
    else. Classes that pad the head are never drawn and change nothing. For `fusion.Fisher`.
    """

    def log_likelihood(params: PyTree, image: Array, key: Array) -> Array:
        logits = head(backbone.features(params, image[None]))[0]
        up_to = jnp.cumsum(jax.lax.stop_gradient(jax.nn.softmax(logits)))
        label = jnp.sum(up_to <= jax.random.uniform(key) * up_to[-1])
        return jax.nn.log_softmax(logits)[label]

    def add(total: PyTree, sample: tuple[Array, Array]) -> tuple[PyTree, None]:
        gradient = jax.grad(log_likelihood)(params, *sample)
        return jax.tree.map(lambda t, g: t + g**2, total, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    keys = jax.random.split(key, len(images))
    total, _ = jax.lax.scan(add, zeros, (images, keys))
    return jax.tree.map(lambda leaf: leaf / len(images), total)


def input_grams(
    params: PyTree, images: UInt8[Array, "n size size channels"], backbone: Backbone
) -> dict[str, Float[Array, "inputs inputs"]]:
    """Return ``X^T X / n`` of the inputs of every dense layer, by the path of its kernel.

    Over what the layer computes: the last block's queries, output and MLP see only the class token.
    For `fusion.RegMean`.
    """
    starts = range(0, len(images), _BATCH)
    parts = (_batch_grams(params, images[n : n + _BATCH], backbone=backbone) for n in starts)
    total = next(parts)
    for part in parts:
        total = jax.tree.map(jnp.add, total, part)
    return {path: gram / len(images) for path, gram in total.items()}


@partial(jax.jit, static_argnames="backbone")
def _batch_grams(params: PyTree, images: Array, *, backbone: Backbone) -> dict[str, Array]:
    grams: dict[str, Array] = {}

    def record(
        call: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            rows = args[0].reshape(-1, args[0].shape[-1]).astype(jnp.float32)
            path = "/".join((*context.module.path, "kernel"))
            grams[path] = jnp.matmul(rows.T, rows, precision="highest")
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        backbone.features(params, images)
    return grams


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["heads", "images", "task"],
    meta_fields=["backbone"],
)
@dataclass(frozen=True)
class Unlabelled:
    """Images of all tasks on which `fusion.AdaMerging` makes predictions certain: its `entropy`."""

    backbone: Backbone
    heads: Head
    """Stacked over tasks."""
    images: UInt8[Array, "n size size channels"]
    task: Int[Array, " n"]
    """The task of each image, under whose head it is."""

    def __call__(self, params: PyTree, rows: Int[Array, " batch"]) -> Float[Array, ""]:
        """Return the mean entropy of a model's predictions for some of the images, in nats."""
        features = self.backbone.features(params, self.images[rows])
        return prediction_entropy(logits_by_task(self.heads, features, self.task[rows]))
