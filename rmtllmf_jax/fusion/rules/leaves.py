"""What every rule does alike: weights of the users, one function a leaf, float32 inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.merge import weighted_sum
from rmtllmf_jax.fusion.trees import leaf_path, leaves_by_path, stack_size


def check_weights(weights: Sequence[float]) -> None:
    """Check weights as they stand in options.

    **Raises:** `InputError` if one is not a finite number.
    """
    for weight in weights:
        if not math.isfinite(weight):
            raise InputError(f"weights must be finite numbers, got {list(weights)}.")


def user_weights(
    given: Sequence[float], users: int, instead: Float[Array, " users"] | None = None
) -> Float[Array, " users"]:
    """Return one weight a user: `instead` if there is one, else those given, else ones.

    **Raises:** `InputError` if their number is not that of the users.
    """
    if instead is None:
        instead = jnp.asarray(given, float) if given else jnp.ones(users)
    if instead.shape != (users,):
        raise InputError(
            f"weights: {instead.size} given for {users} task vectors; "
            "give one for each, or none at all, which weighs every one by 1."
        )
    return instead


def check_stacked(stacked: PyTree[Array]) -> int:
    """Return the number Q of stacked task vectors.

    **Raises:** `InputError` if the leaves have no common leading axis, if there is no task vector,
    or if a leaf does not hold real floating-point numbers.
    """
    users = stack_size(stacked)
    if users == 0:
        raise InputError("there is no task vector to merge: the leading axis has length 0.")
    for path, leaf in leaves_by_path(stacked).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"{path}: task vectors must hold floating-point numbers, got {leaf.dtype}; "
                "leave such a leaf out and take the base's."
            )
    return users


def merge_leaves(
    merge: Callable[[str, Float[Array, "users ..."]], Float[Array, "..."]], stacked: PyTree[Array]
) -> PyTree[Array]:
    """Merge leaf by leaf: `merge(path, leaf)` sees float32 or wider; the leaf's type comes out.

    Sums in bfloat16 would lose the small task vectors; the conversion fuses with the sum.
    """

    def merge_leaf(path: tuple, leaf: Array) -> Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return merge(leaf_path(path), wide).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(merge_leaf, stacked)


def weighted(
    weights: Float[Array, " users"], leaf: Float[Array, "users ..."]
) -> Float[Array, "..."]:
    """Return ``sum_q weights_q leaf_q`` in the leaf's type, see `fusion.weighted_sum`."""
    return weighted_sum(leaf, weights).astype(leaf.dtype)


def one_where_zero(divisor: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the divisor with 1 in place of 0: what nobody contributes to stays 0, not 0/0."""
    return jnp.where(divisor == 0, 1, divisor)
