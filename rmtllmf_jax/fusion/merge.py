"""Merge methods: pure functions of stacked task vectors."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.trees import (
    as_type_of,
    check_stacked,
    require_floats,
    require_same_structure,
    widened,
)

PerUser = ArrayLike | Sequence[float]
"""One number per user: an array or a list."""


def weighted_sum(stacked: PyTree, weights: PerUser) -> PyTree[Float[Array, "..."]]:
    """Task arithmetic: ``sum_q weights_q tau_q``, leaf by leaf (R-MTLLMF, eq. (6)).

    The sum is unrolled over the users, which XLA fuses into one pass over memory; broadcasting
    and reducing takes many times as long on a CPU. A combination of tasks is a vector of weights
    0 and 1, so that one compiled program serves all combinations.

    **Arguments:**

    - `stacked`: leaves with a leading axis of Q users (`fusion.stack`).
    - `weights`: one weight per user.

    **Returns:** leaves without the leading axis, of the same types; sums are in float32 or wider.

    **Raises:** `InputError` if the leaves have no common leading axis, or hold no floating-point
    numbers, or if the number of weights is not Q.

    Reference: Ilharco et al., arXiv 2212.04089.

    >>> import jax.numpy as jnp
    >>> weighted_sum({"w": jnp.array([[1.0], [10.0]])}, jnp.array([1.0, 0.5]))["w"].tolist()
    [6.0]
    """
    by_user = one_per_user("weights", weights, check_stacked(stacked))
    return jax.tree.map(lambda leaf: as_type_of(leaf, _sum_of_leaf(leaf, by_user)), stacked)


def one_per_user(name: str, values: PerUser, users: int) -> Float[Array, " users"]:
    """Return values such as weights as an array, float32 or wider.

    **Raises:** `InputError` if they are not one per user.
    """
    found = widened(jnp.asarray(values))
    if found.shape != (users,):
        shape = "" if found.ndim == 1 else f" in the shape {found.shape}"
        raise InputError(
            f"{name}: {found.size} given{shape} for {users} task vectors; give one for each."
        )
    return found


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
    """Compute the change due to the weights as one product with the stack as laid out in memory.

    Differentiated step by step, every user's leaf would be copied and kept for the gradient.
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


def add_to_base(base: PyTree, vector: PyTree, scale: ArrayLike) -> PyTree:
    """Return ``base + scale * vector``, leaf by leaf (R-MTLLMF, eq. (6)).

    Computed in float32 or wider; the leaves keep their types from the base.

    **Raises:** `InputError` if the trees do not match (with every differing path), if a leaf holds
    no floating-point numbers, or if the scale is not one number.

    >>> import jax.numpy as jnp
    >>> add_to_base({"w": jnp.array([1.0])}, {"w": jnp.array([4.0])}, 0.5)["w"].tolist()
    [3.0]
    """
    require_same_structure(base, vector, ("base", "vector"))
    require_floats(base, "base")
    require_floats(vector, "vector")
    require_scalar(scale)
    return jax.tree.map(
        lambda before, delta: as_type_of(before, widened(before) + scale * widened(delta)),
        base,
        vector,
    )


def require_scalar(scale: ArrayLike) -> None:
    """Check that a scale is one number; an array of them would change the shapes of leaves.

    **Raises:** `InputError` that gives the shape.
    """
    if jnp.shape(scale):
        raise InputError(f"the scale must be one number, got the shape {jnp.shape(scale)}.")
