"""DARE: drop entries of the task vectors at random and rescale the rest, with and without TIES.

>>> import jax, jax.numpy as jnp
>>> merged = dare({"w": jnp.ones((2, 100))}, DareOptions(drop=0.5), jax.random.key(0))["w"]
>>> sorted(set(merged.tolist()))
[0.0, 2.0, 4.0]
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    check_weights,
    merge_leaves,
    user_weights,
    weighted,
)
from rmtllmf_jax.fusion.rules.ties import elect
from rmtllmf_jax.fusion.trees import check_stacked


@jax.tree_util.register_static
@dataclass(frozen=True)
class DareOptions:
    """Options of `dare`."""

    drop: float = 0.9
    """Probability p of dropping an entry; the others are multiplied by 1 / (1 - p)."""
    weights: tuple[float, ...] = ()
    """One weight a task vector; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_weights(self.weights)
        _check_drop(self.drop)


@jax.tree_util.register_static
@dataclass(frozen=True)
class DareTiesOptions:
    """Options of `dare_ties`."""

    drop: float = 0.9
    """Probability p of dropping an entry; the others are multiplied by 1 / (1 - p)."""
    normalise: bool = False
    """Divide by the sum of the weights that agree (a mean) rather than only add (a sum)."""
    weights: tuple[float, ...] = ()
    """One weight a task vector, in the vote as well as in the sum; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_weights(self.weights)
        _check_drop(self.drop)


def _check_drop(drop: float) -> None:
    if not 0 <= drop < 1:
        raise InputError(f"drop must be at least 0 and below 1, got {drop!r}.")


def dare(
    stacked: PyTree[Array],
    options: DareOptions,
    key: Key[Array, ""] | None = None,
    *,
    weights: PerUser | None = None,
) -> PyTree[Array]:
    """Return ``sum_q w_q m_q tau_q / (1 - p)``, each entry of m_q 0 with probability p, else 1.

    Over the keys the mean is task arithmetic; p = 0 is task arithmetic. Entries that are not finite
    are never dropped.

    Under `jax.jit` each leaf costs a random generator to compile; a model of hundreds of leaves is
    merged sooner leaf by leaf, ``{path: leaf}`` at a time, with the same masks.

    **Arguments:**

    - `stacked`: leaves with a leading axis of Q users (`fusion.stack`), real floating-point.
    - `options`: probability of dropping, and weights.
    - `key`: the masks follow from it, the user's number and the leaf's path (`keep_mask`), not from
      the order of the leaves.
    - `weights`: in place of the options' weights; an array to map over or to differentiate by.

    **Returns:** leaves without the leading axis, of the same types; sums are in float32 or wider.

    **Raises:** `InputError` if there is no key, if the leaves have no common leading axis, or hold
    integers, or if the number of weights is not Q.

    Reference: Yu et al., "Language Models are Super Mario", arXiv 2311.03099.
    """
    w = user_weights(options.weights, check_stacked(stacked), weights)

    def merge(path: str, leaf: Array) -> Array:
        return weighted(w, drop_entries(leaf, options.drop, _required(key), path))

    return merge_leaves(merge, stacked)


def dare_ties(
    stacked: PyTree[Array],
    options: DareTiesOptions,
    key: Key[Array, ""] | None = None,
    *,
    weights: PerUser | None = None,
) -> PyTree[Array]:
    """Return the TIES election over task vectors sparsified by DARE in place of trimming.

    The sum (with `normalise`, the mean) over the users whose ``w_q m_q tau_q / (1 - p)`` has the
    sign of the sum of all, as in steps 2 and 3 of `ties`. Arguments, types and errors as in `dare`.

    Reference: Yu et al., arXiv 2311.03099; Yadav et al., arXiv 2306.01708.
    """
    w = user_weights(options.weights, check_stacked(stacked), weights)

    def merge(path: str, leaf: Array) -> Array:
        return elect(drop_entries(leaf, options.drop, _required(key), path), w, options.normalise)

    return merge_leaves(merge, stacked)


def keep_mask(
    key: Key[Array, ""],
    user: int | Int[Array, ""],
    path: str,
    shape: tuple[int, ...],
    drop: float,
) -> Bool[Array, "..."]:
    """Return which entries of a user's leaf are kept, each with probability ``1 - drop``."""
    return _kept(jax.random.fold_in(key, zlib.crc32(path.encode())), user, shape, drop)


def drop_entries(
    leaf: Float[Array, "users ..."], drop: float, key: Key[Array, ""], path: str
) -> Float[Array, "users ..."]:
    """Return each user's leaf with entries dropped and the rest rescaled by 1 / (1 - drop)."""
    if drop == 0:
        return leaf
    leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return _dropped(leaf, leaf_key, drop)


@partial(jax.jit, static_argnames="drop")
def _dropped(
    leaf: Float[Array, "users ..."], leaf_key: Key[Array, ""], drop: float
) -> Float[Array, "users ..."]:
    """Compiled once a shape, not once a leaf, where the caller does not compile it himself."""

    def drop_from(numbered: tuple[Array, Array]) -> Array:
        user, row = numbered
        kept = _kept(leaf_key, user, row.shape, drop)
        # What is not finite must not vanish by chance.
        return jnp.where(kept | ~jnp.isfinite(row), row * (1 / (1 - drop)), 0)

    # One after the other: a generator for each user takes as many times as long to compile.
    return jax.lax.map(drop_from, (jnp.arange(leaf.shape[0]), leaf))


def _kept(
    leaf_key: Key[Array, ""], user: int | Int[Array, ""], shape: tuple[int, ...], drop: float
) -> Bool[Array, "..."]:
    # In float32 always, so that the masks are the same with and without 64-bit mode.
    uniform = jax.random.uniform(jax.random.fold_in(leaf_key, user), shape, jnp.float32)
    return uniform >= drop


def _required(key: Key[Array, ""] | None) -> Key[Array, ""]:
    if key is None:
        raise InputError("this rule draws random masks: give it a key, jax.random.key(seed).")
    return key
