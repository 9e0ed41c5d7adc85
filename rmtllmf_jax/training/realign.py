"""Realign a merged model on a few samples of its tasks: images under their heads, or texts."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from rmtllmf_jax.evaluation.batches import Batch
from rmtllmf_jax.models.heads import Head
from rmtllmf_jax.models.shared import SharedModel
from rmtllmf_jax.training.finetune import mean_loss
from rmtllmf_jax.training.recipes import Recipe


def realign(
    params: PyTree,
    trainable: PyTree[Bool[Array, ""]],
    heads: Head | None,
    shots: Batch,
    batches: Int[Array, "steps batch"],
    *,
    model: SharedModel,
    recipe: Recipe,
    average: float = 0.0,
) -> tuple[PyTree, Float[Array, " steps"]]:
    """Return the realigned parameters and the loss before each step.

    Pure; one program serves all combinations and frozen leaves: both are data.

    **Arguments:**

    - `params`: the merged model.
    - `trainable`: a flag per leaf; leaves with `False` come back bitwise equal.
    - `heads`: stacked, frozen; `None` for texts. `shots`: the pool of all tasks, images each with
      its `task`; all have the same weight, or for texts all counted tokens.
    - `batches`: indices into the pool, one row per step (`batches.balanced_batches`); they select
      the combination.
    - `average`: the parameters returned are the mean over this last share of all steps, rounded to
      at least one step (stochastic weight averaging, Izmailov et al., arXiv 1803.05407, over the
      recipe's own decaying learning rate). 0 returns the last.
    """
    steps = len(batches)
    averaged = max(1, round(average * steps)) if average else 0
    optimiser = recipe.optimiser()

    def loss(params: PyTree, rows: Int[Array, " batch"]) -> Float[Array, ""]:
        batch = jax.tree.map(lambda leaf: leaf[rows], shots)
        return mean_loss(model.outputs(params, heads, batch.inputs), batch)

    def step(
        carry: tuple[PyTree, PyTree, PyTree], numbered: tuple[Array, Int[Array, " batch"]]
    ) -> tuple[tuple[PyTree, PyTree, PyTree], Float[Array, ""]]:
        params, state, mean = carry
        number, batch = numbered
        value, gradient = jax.value_and_grad(loss)(params, batch)
        # Nor may frozen leaves count in the clipped global norm.
        gradient = jax.tree.map(jnp.where, trainable, gradient, _zeros(gradient))
        updates, state = optimiser.update(gradient, state, params)
        moved = optax.apply_updates(params, updates)
        params = jax.tree.map(jnp.where, trainable, moved, params)
        if averaged:
            count = jnp.maximum(1, number + 1 - (steps - averaged))
            mean = jax.tree.map(partial(_averaged, count), trainable, mean, params)
        return (params, state, mean), value

    # Without averaging nothing is carried: `None` has no leaves.
    carry = (params, optimiser.init(params), params if averaged else None)
    (last, _, mean), losses = jax.lax.scan(step, carry, (jnp.arange(steps), batches))
    return (mean if averaged else last), losses


def _averaged(count: Int[Array, ""], moves: Array, mean: Array, now: Array) -> Array:
    """Return the mean of a leaf's last `count` values, ending with `now`; `now` if it is frozen."""
    return jnp.where(moves & (count > 1), mean + (now - mean) / count.astype(mean.dtype), now)


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)
