"""How alike task vectors are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


def cosine_matrix(stacked: PyTree[Float[Array, "users ..."]]) -> Float[Array, "users users"]:
    """Return the cosines between all pairs of stacked task vectors, over all coordinates.

    A vector that is zero has cosine NaN with every other: it has no direction.
    """

    def gram(leaf: Array) -> Array:
        rows = leaf.reshape(leaf.shape[0], -1)
        return jnp.matmul(rows, rows.T, precision="highest")

    total = jnp.asarray(jax.tree.reduce(lambda a, b: a + b, jax.tree.map(gram, stacked)))
    norms = jnp.sqrt(jnp.diag(total))
    return total / (norms[:, None] * norms[None, :])


def rms(stacked: PyTree[Float[Array, "users ..."]]) -> Float[Array, " users"]:
    """Return the root mean square of each stacked task vector over all its parameters."""
    squares = jax.tree.map(
        lambda leaf: jnp.sum(jnp.square(leaf.reshape(leaf.shape[0], -1)), axis=1), stacked
    )
    # A float, because jax refuses Python integers beyond 32 bits.
    size = float(sum(leaf[0].size for leaf in jax.tree.leaves(stacked)))
    return jnp.sqrt(jax.tree.reduce(lambda a, b: a + b, squares) / size)
