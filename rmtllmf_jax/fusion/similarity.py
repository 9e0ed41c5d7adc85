"""Similarity of task vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PyTree

from rmtllmf_jax.fusion.layers import Granularity, group_by_layer
from rmtllmf_jax.fusion.trees import check_stacked, leaves_by_path, widened

_CHUNK = 1 << 20  # coordinates that are widened to float64 at a time


def cosine_matrix(stacked: PyTree[Float[Array, "users ..."]]) -> Float[Array, "users users"]:
    """Return the cosines between all pairs of stacked task vectors, over all coordinates.

    Works under jit and on accelerators, in float32 or wider; use `exact_cosines` for figures. A
    zero vector has cosine NaN with every other: it has no direction.

    >>> cosine_matrix({"w": jnp.array([[3.0, 4.0], [4.0, -3.0]])}).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    check_stacked(stacked)
    total = jnp.asarray(jax.tree.reduce(lambda a, b: a + b, jax.tree.map(inner_products, stacked)))
    norms = jnp.sqrt(jnp.diag(total))
    return total / (norms[:, None] * norms[None, :])


def sign_agreement(stacked: PyTree[Float[Array, "users ..."]]) -> Float[Array, "users users"]:
    """Return the share of coordinates in which two task vectors have the same sign, for all pairs.

    ``(1 + sum_i sgn(a_i) sgn(b_i) / n) / 2``: a coordinate in which either is zero counts one half.
    The criterion of the sign election in TIES; .5 for unrelated vectors.

    >>> sign_agreement({"w": jnp.array([[1.0, 2.0, -3.0, 4.0], [5.0, -6.0, -7.0, 8.0]])}).tolist()
    [[1.0, 0.75], [0.75, 1.0]]
    """
    check_stacked(stacked)
    signs = jax.tree.map(lambda leaf: inner_products(jnp.sign(leaf)), stacked)
    total = jax.tree.reduce(lambda a, b: a + b, signs)
    size = float(sum(leaf[0].size for leaf in jax.tree.leaves(stacked)))
    return (1 + jnp.asarray(total) / size) / 2


def exact_cosines(stacked: PyTree[Float[Array, "users ..."]]) -> Float[np.ndarray, "users users"]:
    """Return `cosine_matrix` with products and sums in float64, on the host.

    Over all coordinates: no sampling, which distorts the small cosines of task vectors.

    >>> exact_cosines({"w": jnp.array([[3.0, 4.0], [0.0, 1.0]])}).tolist()
    [[1.0, 0.8], [0.8, 1.0]]
    """
    users = check_stacked(stacked)
    leaves = jax.tree.leaves(stacked)
    total = sum((exact_gram(np.asarray(leaf)) for leaf in leaves), np.zeros((users, users)))
    return _normalised(total)


def layer_cosines(
    stacked: PyTree[Float[Array, "users ..."]], granularity: Granularity = "block"
) -> dict[str, Float[np.ndarray, "users users"]]:
    """Return `exact_cosines` of each layer (`layers.layer_of`), blocks by number.

    **Raises:** `InputError` for an unknown granularity.

    >>> stacked = {"layers": {n: {"w": jnp.array([[3.0, 4.0], [4.0, 3.0 * n]])} for n in (1, 0)}}
    >>> {layer: cosines[0, 1].item() for layer, cosines in layer_cosines(stacked).items()}
    {'layers/0': 0.6, 'layers/1': 0.96}
    """
    check_stacked(stacked)
    grams = {path: exact_gram(np.asarray(x)) for path, x in leaves_by_path(stacked).items()}
    return {
        layer: _normalised(np.sum([grams[path] for path in paths], axis=0))
        for layer, paths in group_by_layer(grams, granularity).items()
    }


def rms(stacked: PyTree[Float[Array, "users ..."]]) -> Float[Array, " users"]:
    """Return the root mean square of each stacked task vector over all its parameters.

    >>> rms({"w": jnp.array([[1.0, 7.0], [0.0, 0.0]])}).tolist()
    [5.0, 0.0]
    """
    check_stacked(stacked)
    squares = jax.tree.map(
        lambda leaf: jnp.sum(jnp.square(widened(leaf).reshape(leaf.shape[0], -1)), axis=1), stacked
    )
    # A float, because jax refuses Python integers beyond 32 bits.
    size = float(sum(leaf[0].size for leaf in jax.tree.leaves(stacked)))
    return jnp.sqrt(jax.tree.reduce(lambda a, b: a + b, squares) / size)


def inner_products(leaf: Float[Array, "users ..."]) -> Float[Array, "users users"]:
    """Return the inner products of the rows of one leaf, in float32 or wider."""
    rows = widened(leaf).reshape(leaf.shape[0], -1)
    return jnp.matmul(rows, rows.T, precision="highest")


def exact_gram(rows: Float[np.ndarray, "users ..."]) -> Float[np.ndarray, "users users"]:
    """Return the inner products of the rows, summed in float64 without a copy of all of them."""
    flat = rows.reshape(len(rows), -1)
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, flat.shape[1], _CHUNK):
        chunk = flat[:, start : start + _CHUNK].astype(np.float64)
        total += chunk @ chunk.T
    return total


def exact_squares(rows: Float[np.ndarray, "users ..."]) -> Float64[np.ndarray, " users"]:
    """Return the sum of squares of each row, in float64."""
    return np.array([exact_gram(row[None])[0, 0] for row in rows])


def _normalised(gram: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    norms = np.sqrt(np.diag(gram))
    with np.errstate(invalid="ignore"):  # a zero vector's NaN is meant
        return gram / (norms[:, None] * norms[None, :])
