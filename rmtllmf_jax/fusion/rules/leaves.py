"""What all methods share: weights of the users, one function per leaf, float32 internally."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.merge import PerUser, one_per_user, weighted_sum
from rmtllmf_jax.fusion.trees import as_type_of, leaf_path, widened


def check_weights(weights: Sequence[float]) -> None:
    """Check weights given as options.

    **Raises:** `InputError` if one is not a finite number.
    """
    for weight in weights:
        if not math.isfinite(weight):
            raise InputError(f"weights must be finite numbers, got {list(weights)}.")


def user_weights(
    given: Sequence[float], users: int, instead: PerUser | None = None
) -> Float[Array, " users"]:
    """Return one weight per user: `instead` if there is one, else those given, else ones.

    **Raises:** `InputError` if their number is not that of the users.
    """
    if instead is None:
        instead = given if len(given) else (1.0,) * users
    return one_per_user("weights", instead, users)


def merge_leaves(
    merge: Callable[[str, Float[Array, "users ..."]], Float[Array, "..."]], stacked: PyTree[Array]
) -> PyTree[Array]:
    """Merge leaf by leaf: `merge(path, leaf)` sees float32 or wider; results have the leaf's type.

    Sums in bfloat16 would lose the small task vectors; the conversion fuses with the sum.
    """

    def merge_leaf(path: tuple, leaf: Array) -> Array:
        return as_type_of(leaf, merge(leaf_path(path), widened(leaf)))

    return jax.tree_util.tree_map_with_path(merge_leaf, stacked)


def weighted(
    weights: Float[Array, " users"], leaf: Float[Array, "users ..."]
) -> Float[Array, "..."]:
    """Return ``sum_q weights_q leaf_q`` in the leaf's type, see `fusion.weighted_sum`."""
    return weighted_sum(leaf, weights)


def one_where_zero(divisor: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the divisor with 1 in place of 0: entries without contributions stay 0, not 0/0."""
    return jnp.where(divisor == 0, 1, divisor)


def norms_of(leaf: Float[Array, "users ..."]) -> Float[Array, " users"]:
    """Return each user's norm; its derivative at zero is zero."""
    squares = jnp.sum(jnp.square(leaf), axis=range(1, leaf.ndim))
    return jnp.where(squares == 0, 0, jnp.sqrt(one_where_zero(squares)))


def inputs_first(path: str) -> bool:
    """Return whether a matrix with this name is (inputs, outputs), like kernels in Flax.

    In torch they are called ``weight`` and are (outputs, inputs).
    """
    return not path.endswith("weight")
