"""TIES: trim each task vector, elect a sign for each parameter, average those that agree.

>>> import jax.numpy as jnp
>>> stacked = {"w": jnp.array([[4.0, -1.0, 3.0, 0.1], [2.0, 5.0, -7.0, 0.2]])}
>>> ties(stacked, TiesOptions(density=0.5))["w"].tolist()
[4.0, 5.0, -7.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from rmtllmf_jax.common.errors import InputError
from rmtllmf_jax.fusion.rules.leaves import (
    PerUser,
    check_weights,
    merge_leaves,
    one_where_zero,
    user_weights,
)
from rmtllmf_jax.fusion.trees import check_stacked


@jax.tree_util.register_static
@dataclass(frozen=True)
class TiesOptions:
    """Options of `ties`."""

    density: float = 0.2
    """Share of the entries of each tensor that trimming keeps, those of largest magnitude."""
    normalise: bool = True
    """Divide by the sum of the weights that agree (a mean) rather than only add (a sum)."""
    weights: tuple[float, ...] = ()
    """One weight a task vector, in the vote as well as in the mean; none: 1 for each."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_weights(self.weights)
        if not 0 < self.density <= 1:
            raise InputError(f"density must be above 0 and at most 1, got {self.density!r}.")


def ties(
    stacked: PyTree[Array],
    options: TiesOptions,
    key: Key[Array, ""] | None = None,
    *,
    weights: PerUser | None = None,
) -> PyTree[Array]:
    """Return the TIES merge of stacked task vectors, tensor by tensor.

    1. Trim: ``t_q`` is tau_q where ``|tau_q|`` is among the tensor's ``max(1, int(density n))``
       largest, else 0.
    2. Elect: ``s = +1`` where ``sum_q w_q t_q >= 0``, else -1, parameter by parameter.
    3. Mean of those that agree: ``sum_A w_q t_q / sum_A w_q`` over ``A = {q: sign(w_q t_q) = s}``;
       a parameter that nobody kept stays 0. Without `normalise`, the sum alone.

    Entries that tie with the last one kept are all kept, so that the result does not depend on the
    order of the entries; a user of weight 0 has no say, as if left out. The thresholds are not
    differentiable; within a region the merge is linear in the task vectors. Entries that are not
    finite are never dropped.

    **Arguments:**

    - `stacked`: leaves with a leading axis of Q users (`fusion.stack`), real floating-point.
    - `options`: density, normalisation and weights.
    - `key`: not used.
    - `weights`: in place of the options' weights; an array to map over or to differentiate by.

    **Returns:** leaves without the leading axis, of the same types; sums are in float32 or wider.

    **Raises:** `InputError` if the leaves have no common leading axis, or hold integers, or if the
    number of weights is not Q.

    Reference: Yadav et al., "TIES-Merging", arXiv 2306.01708. The authors trim the whole vector at
    once; tensor by tensor is what merging tools do and what files can be streamed by.
    """
    w = user_weights(options.weights, check_stacked(stacked), weights)

    def merge(_: str, leaf: Array) -> Array:
        return elect(trim(leaf, options.density), w, options.normalise)

    return merge_leaves(merge, stacked)


def trim(leaf: Float[Array, "users ..."], density: float) -> Float[Array, "users ..."]:
    """Keep the share `density` of each user's entries, the largest in magnitude; zero the rest."""
    if density >= 1 or leaf.size == 0:
        return leaf
    magnitudes = jnp.abs(leaf.reshape(leaf.shape[0], -1))
    kept = max(1, int(density * magnitudes.shape[1]))
    mask = magnitudes >= kth_largest(magnitudes, kept)[:, None]
    return jnp.where(mask.reshape(leaf.shape) | ~jnp.isfinite(leaf), leaf, 0)


@jax.jit
def kth_largest(
    magnitudes: Float[Array, "users size"], k: int | Int[Array, ""]
) -> Float[Array, " users"]:
    """Return the k-th largest of each row of numbers >= 0, exactly, without sorting.

    Floats >= 0 are ordered as their bits are, so the answer is built bit by bit from the highest:
    a bit stays if at least k entries reach the value. One count a bit takes a tenth of the time of
    sorting millions of entries; row after row, so that a row stays in the processor's cache.
    """
    width = magnitudes.dtype.itemsize * 8
    integer = jnp.dtype(f"int{width}")  # the sign bit is 0; unsigned ones compare slowly

    def of_row(row: Array) -> Array:
        def add_bit(step: Array, found: Array) -> Array:
            higher = found | (jnp.ones((), integer) << (width - 2 - step).astype(integer))
            return jnp.where(jnp.sum(row >= higher) >= k, higher, found)

        return jax.lax.fori_loop(0, width - 1, add_bit, jnp.zeros((), integer))

    found = jax.lax.map(of_row, jax.lax.bitcast_convert_type(magnitudes, integer))
    return jax.lax.bitcast_convert_type(found, magnitudes.dtype)


def elect(
    leaf: Float[Array, "users ..."], weights: Float[Array, " users"], normalise: bool
) -> Float[Array, "..."]:
    """Return the mean (or sum) over the users whose weighted entry has the elected sign."""
    users = range(leaf.shape[0])
    votes = [(weights[user] * leaf[user]).astype(leaf.dtype) for user in users]
    sign = jnp.where(sum(votes) >= 0, 1, -1)
    # What is not finite has a say in any case: it must not vanish from the result.
    agree = [(jnp.sign(vote) == sign) | ~jnp.isfinite(vote) for vote in votes]
    total = jnp.asarray(sum(jnp.where(agree[user], votes[user], 0) for user in users))
    if normalise:
        share = sum(weights[user] * agree[user] for user in users)
        total = total / one_where_zero(jnp.asarray(share))
    return total.astype(leaf.dtype)
