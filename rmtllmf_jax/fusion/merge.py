"""Merge rules: pure functions of stacked task vectors."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.fusion.trees import stack_size


def weighted_sum(
    stacked: PyTree[Float[Array, "users ..."]], weights: Float[Array, " users"]
) -> PyTree[Float[Array, "..."]]:
    """Task arithmetic: ``sum_q weights_q tau_q``, leaf by leaf (R-MTLLMF, eq. (6)).

    The sum is unrolled over the users, which XLA fuses into one pass over memory; broadcasting
    and reducing takes many times as long on a CPU. A combination of tasks is a vector of weights
    0 and 1, so that one compiled program serves all combinations.

    **Arguments:**

    - `stacked`: leaves with a leading axis of Q users (`fusion.stack`).
    - `weights`: one weight a user.

    **Raises:** `InputError` if the leaves have no common leading axis.

    Reference: Ilharco et al., arXiv 2212.04089.

    >>> import jax.numpy as jnp
    >>> weighted_sum({"w": jnp.array([[1.0], [10.0]])}, jnp.array([1.0, 0.5]))["w"].tolist()
    [6.0]
    """
    users = stack_size(stacked)

    def merge_leaf(leaf: Array) -> Array:
        total = weights[0] * leaf[0]
        for user in range(1, users):
            total = total + weights[user] * leaf[user]
        return total

    return jax.tree.map(merge_leaf, stacked)


def add_to_base(base: PyTree, vector: PyTree, scale: float | Float[Array, ""]) -> PyTree:
    """Return ``base + scale * vector``, leaf by leaf (R-MTLLMF, eq. (6)).

    >>> import jax.numpy as jnp
    >>> add_to_base({"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}, 0.5)["w"].tolist()
    [3.0]
    """
    return jax.tree.map(lambda before, delta: before + scale * delta, base, vector)
