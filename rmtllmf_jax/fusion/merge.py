"""Merge rules: pure functions of stacked task vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
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
    stack_size(stacked)
    return jax.tree.map(lambda leaf: _sum_of_leaf(leaf, weights), stacked)


@jax.custom_jvp
def _sum_of_leaf(
    leaf: Float[Array, "users ..."], weights: Float[Array, " users"]
) -> Float[Array, "..."]:
    users = len(leaf)
    total = weights[0] * leaf[0]
    for user in range(1, users):
        total = total + weights[user] * leaf[user]
    return total


def _sum_of_leaf_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    """Give the change that weights make as one product with the stack as it lies in memory.

    Derived step by step, every user's leaf would be copied for the gradient, and the copies kept.
    """
    leaf, weights = primals
    leaf_change, weights_change = tangents
    total = _sum_of_leaf(leaf, weights)
    change = jnp.zeros_like(total)
    if not isinstance(weights_change, SymbolicZero):
        vectors = leaf.reshape(len(leaf), -1)
        moved = jnp.matmul(weights_change, vectors, precision="highest")
        change += moved.reshape(total.shape).astype(total.dtype)
    if not isinstance(leaf_change, SymbolicZero):
        change += _sum_of_leaf(leaf_change, weights)
    return total, change


_sum_of_leaf.defjvp(_sum_of_leaf_jvp, symbolic_zeros=True)


def add_to_base(base: PyTree, vector: PyTree, scale: float | Float[Array, ""]) -> PyTree:
    """Return ``base + scale * vector``, leaf by leaf (R-MTLLMF, eq. (6)).

    >>> import jax.numpy as jnp
    >>> add_to_base({"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}, 0.5)["w"].tolist()
    [3.0]
    """
    return jax.tree.map(lambda before, delta: before + scale * delta, base, vector)
