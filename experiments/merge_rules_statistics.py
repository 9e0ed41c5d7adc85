"""What Fisher and RegMean merging know of a task, from a few training images: no labels needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head

BATCH = 32


@partial(jax.jit, static_argnames="backbone")
def fisher_information(
    params: Any, head: Head, images: jax.Array, key: jax.Array, *, backbone: Backbone
) -> Any:
    """Return the diagonal Fisher information of a model, a tree like its parameters.

    The mean over images of the squared gradient of the log-likelihood of a label that is drawn
    from the model's own prediction; images one by one, as squares of means would be something else.
    """

    def log_likelihood(params: Any, image: jax.Array, key: jax.Array) -> jax.Array:
        logits = head(backbone.features(params, image[None]))[0]
        label = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        return jax.nn.log_softmax(logits)[label]

    def add(total: Any, sample: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        gradient = jax.grad(log_likelihood)(params, *sample)
        return jax.tree.map(lambda t, g: t + g**2, total, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    keys = jax.random.split(key, len(images))
    total, _ = jax.lax.scan(add, zeros, (images, keys))
    return jax.tree.map(lambda leaf: leaf / len(images), total)


def input_grams(params: Any, images: jax.Array, backbone: Backbone) -> dict[str, jax.Array]:
    """Return ``X^T X`` of the inputs of every dense layer, by the path of its kernel.

    Of what the layer computes: the last block's queries, output and MLP see the class token alone.
    """
    total: dict[str, jax.Array] = {}
    for start in range(0, len(images), BATCH):
        part = _batch_grams(params, images[start : start + BATCH], backbone=backbone)
        total = part if not total else jax.tree.map(jnp.add, total, part)
    return {path: gram / len(images) for path, gram in total.items()}


@partial(jax.jit, static_argnames="backbone")
def _batch_grams(params: Any, images: jax.Array, *, backbone: Backbone) -> dict[str, jax.Array]:
    grams: dict[str, jax.Array] = {}

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
