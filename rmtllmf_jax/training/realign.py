"""Realign a merged model on a few labelled samples of its tasks, each task under its own head."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.models.backbone import Backbone
from rmtllmf_jax.models.heads import Head, logits_by_task
from rmtllmf_jax.training.recipes import Recipe


def realign(
    params: PyTree,
    trainable: PyTree[Bool[Array, ""]],
    heads: Head,
    shots: Batch,
    batches: Int[Array, "steps batch"],
    *,
    backbone: Backbone,
    recipe: Recipe,
) -> tuple[PyTree, Float[Array, " steps"]]:
    """Return the realigned parameters and the loss before each step.

    Pure; one program serves all combinations and frozen leaves: both are data.

    **Arguments:**

    - `params`: the merged model.
    - `trainable`: a flag per leaf; leaves with `False` come back bitwise equal.
    - `heads`: stacked, frozen; `shots`: the pool of all tasks, each with its
      `task`; all weigh the same.
    - `batches`: indices into the pool, one row per step (`batches.balanced_batches`); they select
      the combination.
    """
    optimiser = recipe.optimiser()

    def loss(params: PyTree, batch: Int[Array, " batch"]) -> Float[Array, ""]:
        features = backbone.features(params, shots.inputs["images"][batch])
        logits = logits_by_task(heads, features, shots.inputs["task"][batch])
        labels = shots.target[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(
        carry: tuple[PyTree, PyTree], batch: Int[Array, " batch"]
    ) -> tuple[tuple[PyTree, PyTree], Float[Array, ""]]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, batch)
        # Nor may frozen leaves count in the clipped global norm.
        gradient = jax.tree.map(jnp.where, trainable, gradient, _zeros(gradient))
        updates, state = optimiser.update(gradient, state, params)
        moved = optax.apply_updates(params, updates)
        return (jax.tree.map(jnp.where, trainable, moved, params), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimiser.init(params)), batches)
    return params, losses


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)
